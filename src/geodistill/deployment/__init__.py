"""Classifiers outside geodistill: other formats, what they cost on a device, and maps of large rasters."""
