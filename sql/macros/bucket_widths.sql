-- bucket_widths(): positions per bucket, such that a round fills at most 32 buckets.
-- grain: a table: run, round
-- columns:
--   (result): run, round, positions, a power of two: buckets of two rounds nest
CREATE MACRO bucket_widths() AS TABLE
SELECT run, round, (2 ** greatest(0, ceil(log2((max(position) + 1) / 32))))::INTEGER AS positions
FROM raw.tokens
GROUP BY run, round;
