-- timings_by_stage: what each stage cost: wall time added up over shards, and bytes of files. A shard that another
-- round or run computed has no seconds here.
-- grain: run, round, stage
-- columns:
--   run: run id
--   round: round, from 0
--   stage: prompts | rollout | score | hidden | continuation | mask | train | evaluate
--   shards: count
--   seconds: wall time, summed over shards
--   rows: count, of the shards' files
--   rows_per_second: rows / seconds
--   size_bytes: bytes
SELECT run, round, stage, count(*) AS shards, sum(timings.seconds) AS seconds, sum(shards.rows)::BIGINT AS rows,
       sum(shards.rows) / nullif(sum(timings.seconds), 0) AS rows_per_second, sum(size_bytes)::BIGINT AS size_bytes
FROM shards LEFT JOIN timings USING (run, round, stage, shard)
GROUP BY run, round, stage
ORDER BY run, round,
         list_position(['prompts', 'rollout', 'score', 'hidden', 'continuation', 'mask', 'train', 'evaluate'], stage);
