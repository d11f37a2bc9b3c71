-- gap_along_response: how teacher and student differ along the response, in 32 buckets. A round has at most 32;
-- `position_metrics` has their other metrics, `gap_by_position` has buckets of 64 whatever the length.
-- grain: run, round, first_position
-- columns:
--   run: run id
--   round: round, from 0
--   first_position: first position of the bucket
--   positions: positions per bucket
--   tokens: count
--   reverse_kl: nats, mean KL(p || q) of the student's top-k and one bucket for the rest
--   mean_gap: nats, mean of teacher_log_prob - student_log_prob
--   gap_lower_decile: nats, 10 % of the bucket's tokens have a gap below it
--   teacher_entropy: nats, mean
--   student_entropy: nats, mean
--   student_mass: share of 1, mean mass of the student on the teacher's top-K
SELECT run, round, first_position, positions, tokens, reverse_kl, mean_gap, gap_lower_decile, teacher_entropy,
       student_entropy, student_mass
FROM position_metrics
ORDER BY run, round, first_position;
