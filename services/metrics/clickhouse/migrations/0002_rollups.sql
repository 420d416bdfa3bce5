-- Points get a place that is their own, and rollups.
--
-- `row`: the point's number within its message, so that of two points of one step the one logged later is known.
-- `by_time`: of a series that goes by time (`system/...`): its order, its last point and its rollups go by time.
-- Rows from before have row 0; the time column's old parts keep their form until they are merged.

ALTER TABLE points ADD COLUMN IF NOT EXISTS row UInt32 CODEC(Delta, ZSTD(3)) AFTER seq;

ALTER TABLE points ADD COLUMN IF NOT EXISTS by_time Bool CODEC(ZSTD(3)) AFTER row;

ALTER TABLE points DROP PROJECTION IF EXISTS summaries;

ALTER TABLE points DROP PROJECTION IF EXISTS writers;

-- The rollups below are wrong for a series whose rows do not say that it goes by time: wait for this one.
ALTER TABLE points UPDATE by_time = true
WHERE NOT by_time AND series_id IN (SELECT series_id FROM series WHERE startsWith(name, 'system/'))
SETTINGS mutations_sync = 1;

-- Large compressed blocks: times of neighbouring points are nearly the same in all series of a message.
ALTER TABLE points MODIFY COLUMN IF EXISTS time_unix_us Int64 CODEC(Delta, ZSTD(1))
SETTINGS (min_compress_block_size = 1048576, max_compress_block_size = 1048576);

-- What projections hold has no codec of its own: this halves it.
ALTER TABLE points MODIFY SETTING default_compression_codec = 'ZSTD(3)';

-- Projections live in the parts and cannot drift from them. The queries must keep to these expressions, letter by letter,
-- to be answered by them: they stand in rollup.py, and a test fails where one is not used.
-- A point's place is one number: step or time (64 bits), attempt (16), sequence (31), row (17).
-- The lowest value with its first step is one number too: the value's bits in an order that numbers have, then the step.
-- Sums are of values divided by 2^64, so that they cannot overflow.

ALTER TABLE points ADD PROJECTION IF NOT EXISTS by_writer (
    SELECT
        job_uid,
        attempt,
        rank,
        max(seq),
        min(by_time),
        min(time_unix_us)
    GROUP BY job_uid, attempt, rank
);

ALTER TABLE points ADD PROJECTION IF NOT EXISTS by_series (
    SELECT
        job_uid,
        series_id,
        attempt,
        count(),
        min(if(by_time, time_unix_us, step)),
        max(if(by_time, time_unix_us, step)),
        min(time_unix_us),
        max(time_unix_us),
        argMax(value, bitShiftLeft(toInt128(if(by_time, time_unix_us, step)), 64) + toInt128(bitShiftLeft(toUInt64(attempt), 48) + bitShiftLeft(seq, 17) + row)),
        argMax(step, bitShiftLeft(toInt128(if(by_time, time_unix_us, step)), 64) + toInt128(bitShiftLeft(toUInt64(attempt), 48) + bitShiftLeft(seq, 17) + row)),
        argMax(time_unix_us, bitShiftLeft(toInt128(if(by_time, time_unix_us, step)), 64) + toInt128(bitShiftLeft(toUInt64(attempt), 48) + bitShiftLeft(seq, 17) + row)),
        minIf(bitShiftLeft(toInt128(bitXor(reinterpretAsInt64(value + 0.), bitAnd(bitShiftRight(reinterpretAsInt64(value + 0.), 63), 9223372036854775807))), 64) + step, isFinite(value)),
        maxIf(bitShiftLeft(toInt128(bitXor(reinterpretAsInt64(value + 0.), bitAnd(bitShiftRight(reinterpretAsInt64(value + 0.), 63), 9223372036854775807))), 64) - step, isFinite(value)),
        countIf(isNaN(value)),
        countIf(value = inf),
        countIf(value = -inf)
    GROUP BY job_uid, series_id, attempt
);

-- 64 steps, or 67 seconds. Small granules: a query reads one series of many.
ALTER TABLE points ADD PROJECTION IF NOT EXISTS by_64 (
    SELECT
        job_uid,
        series_id,
        attempt,
        bitShiftRight(if(by_time, time_unix_us, step), if(by_time, 26, 6)),
        count(),
        min(if(by_time, time_unix_us, step)),
        max(if(by_time, time_unix_us, step)),
        argMin(value, bitShiftLeft(toInt128(if(by_time, time_unix_us, step)), 64) + toInt128(bitShiftLeft(toUInt64(attempt), 48) + bitShiftLeft(seq, 17) + row)),
        argMax(value, bitShiftLeft(toInt128(if(by_time, time_unix_us, step)), 64) + toInt128(bitShiftLeft(toUInt64(attempt), 48) + bitShiftLeft(seq, 17) + row)),
        argMax(time_unix_us, bitShiftLeft(toInt128(if(by_time, time_unix_us, step)), 64) + toInt128(bitShiftLeft(toUInt64(attempt), 48) + bitShiftLeft(seq, 17) + row)),
        minIf(bitShiftLeft(toInt128(bitXor(reinterpretAsInt64(value + 0.), bitAnd(bitShiftRight(reinterpretAsInt64(value + 0.), 63), 9223372036854775807))), 64) + step, isFinite(value)),
        maxIf(bitShiftLeft(toInt128(bitXor(reinterpretAsInt64(value + 0.), bitAnd(bitShiftRight(reinterpretAsInt64(value + 0.), 63), 9223372036854775807))), 64) - step, isFinite(value)),
        sumIf(value * 5.421010862427522e-20, isFinite(value)),
        countIf(isNaN(value)),
        countIf(value = inf),
        countIf(value = -inf)
    GROUP BY job_uid, series_id, attempt, bitShiftRight(if(by_time, time_unix_us, step), if(by_time, 26, 6))
) WITH SETTINGS (index_granularity = 512);

-- 4,096 steps, or 72 minutes.
ALTER TABLE points ADD PROJECTION IF NOT EXISTS by_4096 (
    SELECT
        job_uid,
        series_id,
        attempt,
        bitShiftRight(if(by_time, time_unix_us, step), if(by_time, 32, 12)),
        count(),
        min(if(by_time, time_unix_us, step)),
        max(if(by_time, time_unix_us, step)),
        argMin(value, bitShiftLeft(toInt128(if(by_time, time_unix_us, step)), 64) + toInt128(bitShiftLeft(toUInt64(attempt), 48) + bitShiftLeft(seq, 17) + row)),
        argMax(value, bitShiftLeft(toInt128(if(by_time, time_unix_us, step)), 64) + toInt128(bitShiftLeft(toUInt64(attempt), 48) + bitShiftLeft(seq, 17) + row)),
        argMax(time_unix_us, bitShiftLeft(toInt128(if(by_time, time_unix_us, step)), 64) + toInt128(bitShiftLeft(toUInt64(attempt), 48) + bitShiftLeft(seq, 17) + row)),
        minIf(bitShiftLeft(toInt128(bitXor(reinterpretAsInt64(value + 0.), bitAnd(bitShiftRight(reinterpretAsInt64(value + 0.), 63), 9223372036854775807))), 64) + step, isFinite(value)),
        maxIf(bitShiftLeft(toInt128(bitXor(reinterpretAsInt64(value + 0.), bitAnd(bitShiftRight(reinterpretAsInt64(value + 0.), 63), 9223372036854775807))), 64) - step, isFinite(value)),
        sumIf(value * 5.421010862427522e-20, isFinite(value)),
        countIf(isNaN(value)),
        countIf(value = inf),
        countIf(value = -inf)
    GROUP BY job_uid, series_id, attempt, bitShiftRight(if(by_time, time_unix_us, step), if(by_time, 32, 12))
) WITH SETTINGS (index_granularity = 512);

-- Parts that have not got a projection yet are read row by row: nothing waits for these.
ALTER TABLE points MATERIALIZE PROJECTION IF EXISTS by_writer;

ALTER TABLE points MATERIALIZE PROJECTION IF EXISTS by_series;

ALTER TABLE points MATERIALIZE PROJECTION IF EXISTS by_64;

ALTER TABLE points MATERIALIZE PROJECTION IF EXISTS by_4096;
