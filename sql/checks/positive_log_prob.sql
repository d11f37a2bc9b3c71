-- positive_log_prob: a probability above 1, or an entropy below 0. Rounding may pass either bound by 1e-5.
-- grain: run, round
-- columns:
--   run: run id
--   round: round, from 0
--   tokens: count, that fail
--   detail: what is wrong, on one line
SELECT run, round, count(*) AS tokens,
       format('{} tokens have a log-prob above 0 or an entropy below 0, the first at rollout {} position {}', count(*),
              arg_min(rollout_id, (rollout_id, position)), arg_min(position, (rollout_id, position))) AS detail
FROM tokens
WHERE greatest(teacher_log_prob, student_log_prob, rollout_log_prob, sampling_log_prob, teacher_log_tail,
               student_log_tail, teacher_topk_log_probs[1], student_topk_log_probs[1],
               list_max(teacher_log_probs_at_student_topk),
               coalesce(list_max(student_log_probs_at_teacher_topk), 0)) > 1e-5
   OR least(teacher_entropy, student_entropy) < -1e-5
GROUP BY run, round
ORDER BY run, round;
