"""ICDAR's challenges of texts in photos: `lines` (both years), `format`."""
