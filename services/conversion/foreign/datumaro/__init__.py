"""Datumaro: `document` (its JSON, both ways), `format`."""
