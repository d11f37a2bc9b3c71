-- detector: weight 0 for tokens on which the teacher systematically disagrees with a sure student, as the detector of
-- pipeline/mask/detector.py with its defaults finds them; a start for rules of your own.
-- grain: rollout_id, position
-- columns:
--   rollout_id: rollouts.rollout_id
--   position: index into response_tokens
--   weight: factor on the token's loss
--   reason: name, with the token's id
WITH flagged AS (
    SELECT token_id
    FROM tokens
    GROUP BY token_id
    HAVING count(*) >= 8 AND avg(teacher_log_prob::DOUBLE - student_log_prob::DOUBLE) < -10
       AND avg(exp(student_log_prob::DOUBLE)) > 0.5
)
SELECT rollout_id, position, 0.0 AS weight, 'detector:' || token_id AS reason
FROM tokens SEMI JOIN flagged USING (token_id);
