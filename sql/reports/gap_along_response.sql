-- gap_along_response: how teacher and student differ from the first token of a response to the last. Each round has at
-- most 32 buckets, of 1, 2, 4, ... positions; `gap_by_position` has buckets of 64 whatever the length.
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
WITH widths AS (
    SELECT run, round, (2 ** greatest(0, ceil(log2((max(position) + 1) / 32))))::INTEGER AS positions
    FROM tokens GROUP BY run, round
)
SELECT run, round, position_bucket(position, positions) AS first_position, any_value(positions) AS positions,
       count(*) AS tokens,
       avg(reverse_kl_topk(student_topk_log_probs, teacher_log_probs_at_student_topk)) AS reverse_kl,
       avg(gap) AS mean_gap, quantile_cont(gap, 0.1) AS gap_lower_decile,
       avg(teacher_entropy) AS teacher_entropy, avg(student_entropy) AS student_entropy,
       avg(student_mass) AS student_mass
FROM tokens JOIN widths USING (run, round)
GROUP BY run, round, first_position
ORDER BY run, round, first_position;
