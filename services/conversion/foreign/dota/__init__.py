"""DOTA: `format`."""
