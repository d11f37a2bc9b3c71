-- teacher_entropy: half the weight where the teacher itself is unsure: more than 3 nats, about 20 even choices.
-- grain: rollout_id, position
-- columns:
--   rollout_id: rollouts.rollout_id
--   position: index into response_tokens
--   weight: factor on the token's loss
--   reason: name
SELECT rollout_id, position, 0.5 AS weight, 'teacher_entropy' AS reason
FROM tokens
WHERE teacher_entropy > 3;
