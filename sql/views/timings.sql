-- timings: how long each shard of each stage took. Never hashed, different in every copy of a run.
-- grain: run, round, stage, shard
-- columns:
--   run: run id
--   round: round, from 0
--   stage: prompts | rollout | score | hidden | continuation | mask | train | evaluate
--   shard: index in the stage, from 0
--   seconds: wall time of the shard's own work; details.finishing_s of it may have passed beside the next shard
--   rows: count, of the shard's file
--   rows_per_second: rows / seconds
--   host: name of the machine
--   details: JSON, everything else that was noted
CREATE VIEW timings AS
SELECT run, round, stage, shard, seconds, rows, rows / nullif(seconds, 0) AS rows_per_second, host, details
FROM raw.timings;
