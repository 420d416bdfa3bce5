"""Datasets: what is in them, what is wrong with them, and how a dataset for one task becomes one for another.

In reading order. Pure: `task`, `finding`, `document` (YAML and JSON with lines), `header` and `index` (images),
`formats` (one file a task), `dataset` (metadata and records), `snapshot`, `convert` (one function an edge), `plan`
(paths through the edges), `conversion` (one pass). What waits: `source`, `survey` (builds an index), `store` (the
system's own place for results), `reader`, `work`. Then `library` (what the service does), `wire`, `servicer`,
`announcement`, `__main__`.

It reads users' datasets and never writes to them.
"""
