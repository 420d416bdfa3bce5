"""One file a long call: `conversion` (one pass over a dataset), `examination`, `preview`, `copier`, `exchange`;
`catalogue` for viewers, with its `page`."""
