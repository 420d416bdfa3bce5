"""Sends what the spools hold to metrics: `shipper` (all spools), its `stream`, a `writer` and its `phase`."""
