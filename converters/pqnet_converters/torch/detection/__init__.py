"""Detectors with fixed sizes: torchvision's, written so that no size depends on what is in the image."""
