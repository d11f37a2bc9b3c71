-- own_entry: the sampled token's log-prob contradicts the teacher's own top-K: it differs from its entry there,
-- or it is not there though it is larger than the last entry. The grid moves an entry by 1/32 nat at most.
-- grain: run, round
-- columns:
--   run: run id
--   round: round, from 0
--   tokens: count, that fail
--   detail: what is wrong, on one line
SELECT run, round, count(*) AS tokens,
       format('{} tokens have a teacher_log_prob that their teacher_topk contradicts, the first at rollout {} '
              || 'position {}: shifted or foreign scores', count(*),
              arg_min(rollout_id, (rollout_id, position)), arg_min(position, (rollout_id, position))) AS detail
FROM (SELECT run, round, rollout_id, position, teacher_log_prob, teacher_topk_log_probs,
             list_position(teacher_topk_ids, token_id) AS entry
      FROM tokens)
WHERE CASE WHEN entry IS NULL THEN teacher_log_prob > teacher_topk_log_probs[-1] + 0.05
           ELSE abs(teacher_log_prob - teacher_topk_log_probs[entry]) > 0.05 END
GROUP BY run, round
ORDER BY run, round;
