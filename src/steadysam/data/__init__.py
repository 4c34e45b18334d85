"""Images, labels, slices, data sets and splits: everything that is read from or written to a medical image file."""
