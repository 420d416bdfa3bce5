"""Series out: `query` (lists, points, buckets, summaries) and `compare` (jobs side by side)."""
