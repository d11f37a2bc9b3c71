-- positions_after: weight 0 for positions from 1024 on, where a long rollout has often left the teacher's ground.
-- Copy the file and change the number; `file` of a [[mask]] may be a path.
-- grain: rollout_id, position
-- columns:
--   rollout_id: rollouts.rollout_id
--   position: index into response_tokens
--   weight: factor on the token's loss
--   reason: name
SELECT rollout_id, position, 0.0 AS weight, 'positions_after' AS reason
FROM tokens
WHERE position >= 1024;
