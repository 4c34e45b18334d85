"""Tables and figures of a benchmark, from the store that `steadysam bench` wrote."""
