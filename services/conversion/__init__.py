"""Datasets: what is in them, what is wrong with them, and how a dataset for one task becomes one for another.

In reading order. Pure: `task`, `finding`, `document` (YAML and JSON with lines), `header` and `index` (images),
`raster` (maps as arrays), `formats` (one file a task), `foreign` (one file a format of other tools), `dataset`
(metadata and records), `map_folder`, `snapshot`, `convert` (one function an edge), `plan` (paths through the edges),
`chunk` (records through a path, in whatever process), `sink` (where they end), `picture` and `exhibit` (contact
sheets). What waits: `work`, `source`, `survey` (builds an index), `draft` and `store` (the system's own place for
results), `destination` (a place of the caller's choice), `indexer`, `set_reader`, `reader`, `pool` (processes),
`journal` (what an interrupted conversion has done), `conveyor` (chunks in flight), `conversion` (one pass),
`examination`, `gallery`, `preview`, `exchange` (import and export). Then `library` (what the service does), `wire`,
`servicer`, `announcement`, `__main__`.

It reads users' datasets and never writes to them; it writes to the store, and to destinations that are empty.
"""
