"""From label data sets to weights."""
