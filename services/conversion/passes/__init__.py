"""One file a long call: `conversion` (one pass over a dataset), `examination`, `preview`, `copier`, `exchange`."""
