-- flagged_before: weight 0 for tokens whose mean gap was below -10 nats in each of the last two rounds, at least 8
-- times in each: what one round finds by chance is left alone. Touches nothing before the third round.
-- grain: rollout_id, position
-- columns:
--   rollout_id: rollouts.rollout_id
--   position: index into response_tokens
--   weight: factor on the token's loss
--   reason: name
WITH flagged AS (
    SELECT round, token_id
    FROM history
    WHERE round >= $round - 2
    GROUP BY round, token_id
    HAVING count(*) >= 8 AND avg(gap) < -10
),
twice AS (
    SELECT token_id FROM flagged GROUP BY token_id HAVING count(*) = 2
)
SELECT rollout_id, position, 0.0 AS weight, 'flagged_before' AS reason
FROM tokens SEMI JOIN twice USING (token_id);
