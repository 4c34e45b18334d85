"""Compare methods on data sets under one protocol: a suite file in, a store of scored cells out."""
