-- not_finite: NaN or infinity among the scores. A log-tail may be -inf: a top-K that is the whole vocabulary has none.
-- grain: run, round
-- columns:
--   run: run id
--   round: round, from 0
--   tokens: count, that fail
--   detail: what is wrong, on one line
SELECT run, round, count(*) AS tokens,
       format('{} tokens have a score that is NaN or infinite, the first at rollout {} position {}', count(*),
              arg_min(rollout_id, (rollout_id, position)), arg_min(position, (rollout_id, position))) AS detail
FROM tokens
WHERE NOT (isfinite(teacher_log_prob) AND isfinite(student_log_prob) AND isfinite(rollout_log_prob)
           AND isfinite(sampling_log_prob) AND isfinite(teacher_entropy) AND isfinite(student_entropy))
   OR isnan(teacher_log_tail) OR teacher_log_tail = 'inf' OR isnan(student_log_tail) OR student_log_tail = 'inf'
   OR NOT isfinite(list_sum(teacher_topk_log_probs)) OR NOT isfinite(list_sum(student_topk_log_probs))
   OR NOT isfinite(list_sum(teacher_log_probs_at_student_topk))
   OR NOT isfinite(coalesce(list_sum(student_log_probs_at_teacher_topk), 0))
GROUP BY run, round
ORDER BY run, round;
