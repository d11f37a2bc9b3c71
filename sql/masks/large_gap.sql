-- large_gap: weight 0 for single tokens that the teacher finds 20 nats less likely than the student does.
-- grain: rollout_id, position
-- columns:
--   rollout_id: rollouts.rollout_id
--   position: index into response_tokens
--   weight: factor on the token's loss
--   reason: name
SELECT rollout_id, position, 0.0 AS weight, 'large_gap' AS reason
FROM tokens
WHERE gap < -20;
