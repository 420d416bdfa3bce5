"""Where results lie: `draft` (not whole yet), `store` (the system's own), `uploading`, `destination` (a caller's)."""
