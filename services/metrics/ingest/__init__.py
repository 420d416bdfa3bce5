"""Rows in: `stream` (one client), `ingest` (who owns which writer), `block` (the queue and the insert)."""
