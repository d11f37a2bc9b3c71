-- worst_tokens: the ten sampled tokens that the teacher finds least likely. Measured by the student: those of the
-- lowest gap.
-- grain: run, round, rollout_id, position
-- columns:
--   run: run id
--   round: round, from 0
--   rollout_id: rollouts.rollout_id
--   position: index into response_tokens
--   token_id: the sampled token
--   token_text: its text, null where the run's tokenizer cannot be read
--   gap: nats, teacher_log_prob - student_log_prob
--   teacher_log_prob: nats
--   student_log_prob: nats
--   teacher_rank: from 1
WITH worst AS MATERIALIZED (
    SELECT run, round, rollout_id, position, token_id, gap, teacher_log_prob, student_log_prob, teacher_rank
    FROM tokens
    ORDER BY gap, run, round, rollout_id, position
    LIMIT 10
)
SELECT run, round, rollout_id, position, token_id, token_text, gap, teacher_log_prob, student_log_prob, teacher_rank
FROM worst LEFT JOIN vocabulary USING (run, token_id)
ORDER BY gap, run, round, rollout_id, position;
