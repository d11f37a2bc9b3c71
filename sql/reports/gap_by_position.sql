-- gap_by_position: where in the response teacher and student differ, by 64-token bucket.
-- grain: run, round, first_position
-- columns:
--   run: run id
--   round: round, from 0
--   first_position: first position of the bucket
--   tokens: count
--   mean_gap: nats, mean of teacher_log_prob - student_log_prob
--   gap_lower_decile: nats, 10 % of the bucket's tokens have a gap below it
SELECT run, round, position_bucket(position, 64) AS first_position, count(*) AS tokens, avg(gap) AS mean_gap,
       quantile_cont(gap, 0.1) AS gap_lower_decile
FROM tokens
GROUP BY run, round, first_position
ORDER BY run, round, first_position;
