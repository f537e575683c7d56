"""Images with names: data sets of this package's own."""
