"""Protos stop here: `ingest`, `log`, `series`, one a service, and `times`."""
