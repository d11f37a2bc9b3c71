-- all_zeros: the teacher answered 0.0, which would mean that every token was certain. Zero on every token, or zero
-- where the teacher's own entropy says that it was not certain (a certain one has at most 1e-5 nats).
-- grain: run, round
-- columns:
--   run: run id
--   round: round, from 0
--   tokens: count, that fail
--   detail: what is wrong, on one line
SELECT run, round,
       if(min(teacher_log_prob) = 0 AND max(teacher_log_prob) = 0, count(*),
          count(*) FILTER (teacher_log_prob = 0 AND teacher_entropy > 0.01)) AS tokens,
       format('teacher_log_prob is 0 on {} of {} tokens: missing values, not a certain teacher',
              count(*) FILTER (teacher_log_prob = 0), count(*)) AS detail
FROM tokens
GROUP BY run, round
HAVING tokens > 0
ORDER BY run, round;
