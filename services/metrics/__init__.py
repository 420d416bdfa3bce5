"""Metrics: points and log lines in; series, comparisons and log tails out.

In reading order: `writer_key`, `point`, `log`, `buckets`, `rows`, `cursor` (pure: what is written, and who writes);
ingest/ (rows in), clickhouse/ (rows kept), query/ (series out), follow/ (rows out as they come); `job`, `job_wire`,
`jobs` (what the scheduler says of jobs); `forgetting` (of those that it deleted); wire/, servicer/, `config`,
`__main__`.

What is not stored yet is kept by the runners' spools, what is stored by ClickHouse, and nothing by this process: it may
be killed at any moment. Nobody is shown a row that is not stored.
"""
