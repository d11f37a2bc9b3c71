-- constant: the teacher answered one number whatever the token. At least 16 tokens.
-- grain: run, round
-- columns:
--   run: run id
--   round: round, from 0
--   tokens: count, that fail
--   detail: what is wrong, on one line
SELECT run, round, count(*) AS tokens,
       format('teacher_log_prob is {:.4f} on all of {} tokens: the teacher did not read them',
              min(teacher_log_prob)::DOUBLE, count(*)) AS detail
FROM tokens
GROUP BY run, round
HAVING count(*) >= 16 AND min(teacher_log_prob) = max(teacher_log_prob)
ORDER BY run, round;
