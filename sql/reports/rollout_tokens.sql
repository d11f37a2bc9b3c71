-- rollout_tokens: one rollout, token by token, with what the teacher would have written.
-- grain: run, round, position; a branch that shares the rollout has it too
-- parameters:
--   rollout_id: rollouts.rollout_id, as `worst_tokens` and others show it
-- columns:
--   run: run id
--   round: round, from 0
--   position: index into response_tokens
--   token_id: the sampled token
--   token_text: its text, null where the run's tokenizer cannot be read
--   teacher_first: text of the teacher's first choice, null where the run's tokenizer cannot be read
--   gap: nats, teacher_log_prob - student_log_prob
--   student_log_prob: nats
--   teacher_log_prob: nats
--   teacher_rank: from 1
--   weight: factor on this token's loss, 0 masks it; null where the round has no mask yet
--   reasons: masks that touched it
WITH written AS MATERIALIZED (
    SELECT run, round, rollout_id, position, token_id, teacher_topk_ids[1] AS first_id, gap, student_log_prob,
           teacher_log_prob, teacher_rank
    FROM tokens
    WHERE rollout_id = $rollout_id
)
SELECT run, round, position, token_id, own.token_text, likeliest.token_text AS teacher_first, gap, student_log_prob,
       teacher_log_prob, teacher_rank, weight, reasons
FROM written
LEFT JOIN vocabulary AS own USING (run, token_id)
LEFT JOIN (SELECT run, token_id AS first_id, token_text FROM vocabulary) AS likeliest USING (run, first_id)
LEFT JOIN raw.mask USING (run, round, rollout_id, position)
ORDER BY run, round, position;
