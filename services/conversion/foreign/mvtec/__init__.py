"""MVTec AD: `format`."""
