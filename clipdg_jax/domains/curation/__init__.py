"""From a scored pool to natural and rendition datasets, clean test sets, and a report of them."""
