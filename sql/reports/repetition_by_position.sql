-- repetition_by_position: where in the response 3-grams come again. By the buckets of `position_metrics`; a 3-gram lies
-- in the bucket of its last token.
-- grain: run, round, first_position
-- columns:
--   run: run id
--   round: round, from 0
--   first_position: first position of the bucket
--   positions: positions per bucket
--   rollouts: count, those with a 3-gram in the bucket
--   repeat_ratio: share of 1, mean over rollouts of the share of 3-grams that occurred before in the response
WITH grams AS (
    SELECT run, round, rollout_id, unnest(range(2, len(response_tokens))) AS position,
           unnest(response_tokens[:-3]) AS first_id, unnest(response_tokens[2:-2]) AS second_id,
           unnest(response_tokens[3:]) AS third_id
    FROM rollouts
    WHERE len(response_tokens) > 2
),
placed AS (
    SELECT run, round, rollout_id, position, row_number() OVER (
        PARTITION BY run, round, rollout_id, first_id, second_id, third_id ORDER BY position) > 1 AS repeated
    FROM grams
),
by_rollout AS (
    SELECT run, round, rollout_id, position_bucket(position, positions) AS first_position,
           any_value(positions) AS positions, avg(repeated::INTEGER) AS repeat_ratio
    FROM placed JOIN (SELECT run, round, any_value(positions) AS positions FROM position_metrics GROUP BY run, round)
        USING (run, round)
    GROUP BY run, round, rollout_id, first_position
)
SELECT run, round, first_position, any_value(positions) AS positions, count(*) AS rollouts,
       avg(repeat_ratio) AS repeat_ratio
FROM by_rollout
GROUP BY run, round, first_position
ORDER BY run, round, first_position;
