"""Datasets: what is in them, what is wrong with them, and how a dataset for one task becomes one for another.

In reading order. Pure: `task`, `finding`, `file` (documents and headers), `index`, `raster` (maps as arrays), `formats`
(one file a task), `dataset` (metadata, annotations, records), `convert` (one function an edge, and paths through
them), `conveyor` (records in flight, in whatever process). What waits: `source` (users' places), `store` (where results
lie), `reader` (opens datasets), `foreign` (one room a format of other tools), `picture` (contact sheets), `passes` (one
file a long call). Then `library` (what the service does), `wire`, `servicer`, `announcement`, `__main__`.

It reads users' datasets and never writes to them; it writes to the store, and to destinations that are empty.
"""
