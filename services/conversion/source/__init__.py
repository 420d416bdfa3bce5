"""Users' places, only read: `place` (opens, lists), `walk` (all files), `survey` (builds an index), `copying`."""
