"""Images, labels, slices, data sets and splits: all that is read from or written to image files."""
