"""Opens datasets in the native format: `indexer` (each index once), `annotation_set`, `reader`."""
