-- truncated: weight 0 for rollouts that were cut at the token limit.
-- grain: rollout_id, position
-- columns:
--   rollout_id: rollouts.rollout_id
--   position: index into response_tokens
--   weight: factor on the token's loss
--   reason: name
SELECT rollout_id, position, 0.0 AS weight, 'truncated' AS reason
FROM tokens SEMI JOIN (SELECT rollout_id FROM rollouts WHERE finish_reason = 'length') USING (rollout_id);
