"""A table of images and values: `format`."""
