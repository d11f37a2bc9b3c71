-- settled: weight 0 for tokens that both models find more than .99 likely: there is next to nothing left to learn.
-- grain: rollout_id, position
-- columns:
--   rollout_id: rollouts.rollout_id
--   position: index into response_tokens
--   weight: factor on the token's loss
--   reason: name
SELECT rollout_id, position, 0.0 AS weight, 'settled' AS reason
FROM tokens
WHERE least(student_log_prob, teacher_log_prob) > ln(0.99);
