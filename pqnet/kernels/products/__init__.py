"""Products of weights and activations, one algorithm a file, with what they share: tiles, windows, epilogues."""
