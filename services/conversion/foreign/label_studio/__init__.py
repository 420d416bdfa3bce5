"""Label Studio: `brush` (its masks), `document` (its JSON, both ways), `format`."""
