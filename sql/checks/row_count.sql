-- row_count: rollouts whose scores are not exactly one row per token that the student
-- wrote, and scores without a rollout.
-- grain: run, round
-- columns:
--   run: run id
--   round: round, from 0
--   tokens: count, that fail
--   detail: what is wrong, on one line
WITH wanted AS (
    SELECT run, round, rollout_id,
           list_sum(list_transform(turns, lambda turn: turn."end" - turn."start")) AS written
    FROM rollouts
),
found AS (
    SELECT run, round, rollout_id, count(*) AS scored, count(DISTINCT position) AS positions
    FROM tokens GROUP BY run, round, rollout_id
),
compared AS (
    SELECT run, round, rollout_id, coalesce(written, 0) AS written, coalesce(scored, 0) AS scored,
           coalesce(positions, 0) AS positions
    FROM wanted FULL JOIN found USING (run, round, rollout_id)
)
SELECT run, round, sum(greatest(abs(written - scored), scored - positions))::BIGINT AS tokens,
       format('{} rollouts have other numbers of tokens than of scores, the first {}: {} written, {} scored', count(*),
              min(rollout_id), arg_min(written, rollout_id), arg_min(scored, rollout_id)) AS detail
FROM compared
WHERE written <> scored OR scored <> positions
GROUP BY run, round
ORDER BY run, round;
