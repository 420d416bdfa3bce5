"""`sihlai dataset …`: `options` that they share, `commands`, `exchange` (import, export), `images`, `preview`."""
