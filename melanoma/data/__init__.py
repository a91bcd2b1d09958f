"""Data sets: from a folder of images and metadata to checked, grouped and split records."""
