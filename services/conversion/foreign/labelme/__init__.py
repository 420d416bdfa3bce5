"""LabelMe: `document` (the JSON of an image, both ways), `format`."""
