"""CVAT for images: `document` (the XML, both ways), `format`."""
