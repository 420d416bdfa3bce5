-- Everything is keyed by the job's uid, so that a name that is used again starts empty.
-- Tables are not partitioned: an insert of one block is then one part, there whole or not at all, also under SIGKILL.
-- fsync_after_insert: what was acknowledged also survives a loss of power.

CREATE TABLE IF NOT EXISTS series (
    job_uid LowCardinality(String),
    series_id UInt64,
    name String,
    context Map(String, String),
    unit LowCardinality(String)
) ENGINE = MergeTree
ORDER BY (job_uid, name, series_id)
SETTINGS fsync_after_insert = 1;

-- One row a point. `seq` is the number of the message that brought it; what of a writer is stored is max(seq).
-- `seq` ranges skip what a follower of the points has seen. The projections live in the parts and cannot drift from
-- them; the queries in series.py and store.py must keep to their expressions, letter by letter, to be answered by them.
CREATE TABLE IF NOT EXISTS points (
    job_uid LowCardinality(String),
    series_id UInt64 CODEC(Delta, ZSTD(3)),
    step Int64 CODEC(Delta, ZSTD(3)),
    attempt UInt16 CODEC(ZSTD(3)),
    rank UInt16 CODEC(ZSTD(3)),
    seq UInt64 CODEC(Delta, ZSTD(3)),
    time_unix_us Int64 CODEC(Delta, T64, ZSTD(1)),
    value Float64 CODEC(ZSTD(3)),
    INDEX seq_range seq TYPE minmax GRANULARITY 1,
    PROJECTION summaries (
        SELECT
            job_uid,
            series_id,
            attempt,
            count(),
            min(step),
            max(step),
            argMax(value, bitShiftLeft(toInt128(step), 64) + toInt128(seq)),
            minIf(value, isFinite(value)),
            argMinIf(step, value, isFinite(value)),
            maxIf(value, isFinite(value)),
            argMaxIf(step, value, isFinite(value)),
            countIf(isFinite(value)),
            countIf(isNaN(value)),
            countIf(value = inf),
            countIf(value = -inf)
        GROUP BY job_uid, series_id, attempt
    ),
    PROJECTION writers (
        SELECT job_uid, attempt, rank, max(seq)
        GROUP BY job_uid, attempt, rank
    )
) ENGINE = MergeTree
ORDER BY (job_uid, series_id, step, attempt)
-- A query reads one series of many: small granules halve what it reads in vain.
SETTINGS fsync_after_insert = 1, index_granularity = 2048;

-- One row a line. Numbers run from 1 in each attempt and rank and grow with `seq`, so that a cursor is a range of the key.
CREATE TABLE IF NOT EXISTS logs (
    job_uid LowCardinality(String),
    attempt UInt16 CODEC(ZSTD(3)),
    rank UInt16 CODEC(ZSTD(3)),
    number UInt64 CODEC(Delta, ZSTD(3)),
    seq UInt64 CODEC(Delta, ZSTD(3)),
    time_unix_us Int64 CODEC(Delta, ZSTD(3)),
    level UInt8 CODEC(ZSTD(3)),
    source LowCardinality(String),
    stream UInt8 CODEC(ZSTD(3)),
    continued Bool CODEC(ZSTD(3)),
    line String CODEC(ZSTD(3)),
    PROJECTION writers (
        SELECT job_uid, attempt, rank, max(seq), max(number)
        GROUP BY job_uid, attempt, rank
    )
) ENGINE = MergeTree
ORDER BY (job_uid, attempt, rank, number)
SETTINGS fsync_after_insert = 1;

-- A writer that was opened, with its attempt's first step. Read it with max(from_step): rows may stand here twice.
CREATE TABLE IF NOT EXISTS writers (
    job_uid LowCardinality(String),
    attempt UInt16,
    rank UInt16,
    kind LowCardinality(String),
    epoch Int64,
    from_step Int64,
    time_unix_us Int64
) ENGINE = MergeTree
ORDER BY (job_uid, attempt, rank, kind)
SETTINGS fsync_after_insert = 1;

-- The end of a writer. The one with the highest last_seq holds.
CREATE TABLE IF NOT EXISTS finishes (
    job_uid LowCardinality(String),
    attempt UInt16,
    rank UInt16,
    kind LowCardinality(String),
    last_seq UInt64,
    rows_dropped UInt64,
    time_unix_us Int64
) ENGINE = MergeTree
ORDER BY (job_uid, attempt, rank, kind)
SETTINGS fsync_after_insert = 1;

-- Messages that will never come, first and last included.
CREATE TABLE IF NOT EXISTS gaps (
    job_uid LowCardinality(String),
    attempt UInt16,
    rank UInt16,
    kind LowCardinality(String),
    first_seq UInt64,
    last_seq UInt64,
    time_unix_us Int64
) ENGINE = MergeTree
ORDER BY (job_uid, attempt, rank, kind)
SETTINGS fsync_after_insert = 1;
