"""Files of other people, pure: `document` (YAML and JSON with lines), `header` (images)."""
