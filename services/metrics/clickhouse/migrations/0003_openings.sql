-- Who opened a writer, where several processes share a server (see ownership.py). Order is by generation, never by time.
CREATE TABLE IF NOT EXISTS openings (
    job_uid LowCardinality(String),
    attempt UInt16,
    rank UInt16,
    kind LowCardinality(String),
    generation UInt64,
    opener String,
    let_go Bool,
    time DateTime DEFAULT now()
) ENGINE = MergeTree
ORDER BY (job_uid, attempt, rank, kind, generation)
TTL time + INTERVAL 90 DAY
SETTINGS fsync_after_insert = 1;

-- Until when a process may store rows, by the engine's clock. The row with the highest number holds.
CREATE TABLE IF NOT EXISTS leases (
    opener String,
    number UInt64,
    deadline_unix_us Int64,
    released Bool,
    time DateTime DEFAULT now()
) ENGINE = MergeTree
ORDER BY (opener, number)
TTL time + INTERVAL 1 DAY
SETTINGS fsync_after_insert = 1;
