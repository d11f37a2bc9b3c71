-- uniform: the teacher answered -ln V: every token alike. Then log-prob and entropy are
-- opposite and the top-K is flat; of a teacher whose entropy is not known: the log-prob is that of the flat top-K.
-- grain: run, round
-- columns:
--   run: run id
--   round: round, from 0
--   tokens: count, that fail
--   detail: what is wrong, on one line
SELECT run, round, count(*) FILTER (flat) AS tokens,
       format('the teacher is uniform on {} of {} tokens: its output layer did not run', tokens, count(*)) AS detail
FROM (SELECT run, round,
             coalesce(abs(teacher_log_prob + teacher_entropy) < 1e-4,
                      abs(teacher_log_prob - teacher_topk_log_probs[1]) < 0.02)
                 AND teacher_topk_log_probs[1] = teacher_topk_log_probs[-1] AS flat
      FROM tokens)
GROUP BY run, round
HAVING tokens > 0.5 * count(*)
ORDER BY run, round;
