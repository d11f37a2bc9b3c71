-- topk_mass: the teacher's top-K and the mass outside it do not add up to 1 (within 4 %, which the grid can cost). A
-- tail that is null is below 1e-4.
-- grain: run, round
-- columns:
--   run: run id
--   round: round, from 0
--   tokens: count, that fail
--   detail: what is wrong, on one line
SELECT run, round, count(*) AS tokens,
       format('{} tokens have a teacher_topk whose mass and tail do not add up to 1, the first at rollout {} '
              || 'position {}', count(*),
              arg_min(rollout_id, (rollout_id, position)), arg_min(position, (rollout_id, position))) AS detail
FROM (SELECT run, round, rollout_id, position, coalesce(exp(teacher_log_tail::DOUBLE), 0)
             + list_sum(list_transform(teacher_topk_log_probs, lambda x: exp(x::DOUBLE))) AS total
      FROM tokens)
WHERE abs(total - 1) > 0.04
GROUP BY run, round
ORDER BY run, round;
