"""A dataset in the native format, pure: `metadata`, `annotations`, `record`, `map_folder`, `snapshot`."""
