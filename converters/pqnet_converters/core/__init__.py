"""What converters share and needs no framework: sizes, folding, naming, tied weights, patterns."""
