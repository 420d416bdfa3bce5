"""Metrics: points and log lines in; series, comparisons and log tails out.

Domain: `writer`, `point`, `log`, `cursor`. Storage: `engine` (ClickHouse's clients), `migration`, `store`, `series`,
`lines`. In: `ingest`, `block`. Live and out: `live`, `ending`, `tail`, `watch`, `compare`, `jobs`. Edges: `wire`,
`servicer`, `config`, `__main__`.

What is not stored yet is kept by the runners' spools, what is stored by ClickHouse, and nothing by this process: it may
be killed at any moment. Nobody is shown a row that is not stored.
"""
