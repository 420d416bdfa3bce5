"""`sihlai dataset …`: `options` that the commands share, `commands`, `exchange` (import, export), `preview`."""
