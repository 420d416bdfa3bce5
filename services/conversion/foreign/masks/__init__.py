"""Folders of class maps: `labels` (lists of labels, in whatever file), `pairs` (which map is whose), `format`."""
