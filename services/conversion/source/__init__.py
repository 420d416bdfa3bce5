"""Users' places, which are only read: `place` (opens, lists), `walk` (all files), `survey` (builds an index)."""
