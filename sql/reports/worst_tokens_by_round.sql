-- worst_tokens_by_round: the ten of each round that the teacher finds least likely. Measured by the student: those of
-- the lowest gap; `worst_tokens` has the ten of all rounds.
-- grain: run, round, place
-- columns:
--   run: run id
--   round: round, from 0
--   place: from 1, the worst first
--   rollout_id: rollouts.rollout_id
--   position: index into response_tokens
--   token_id: the sampled token
--   token_text: its text, null where the run's tokenizer cannot be read
--   gap: nats, teacher_log_prob - student_log_prob
--   teacher_log_prob: nats
--   student_log_prob: nats
--   teacher_rank: from 1
--   teacher_first: text of the teacher's first choice, null where the run's tokenizer cannot be read
WITH worst AS (
    SELECT run, round, rollout_id, position, token_id, gap, teacher_log_prob, student_log_prob, teacher_rank,
           teacher_topk_ids[1] AS first_id,
           row_number() OVER (PARTITION BY run, round ORDER BY gap, rollout_id, position)::INTEGER AS place
    FROM tokens
    QUALIFY place <= 10
)
SELECT run, round, place, rollout_id, position, token_id, own.token_text, gap, teacher_log_prob, student_log_prob,
       teacher_rank, likeliest.token_text AS teacher_first
FROM worst
LEFT JOIN vocabulary AS own USING (run, token_id)
LEFT JOIN (SELECT run, token_id AS first_id, token_text FROM vocabulary) AS likeliest USING (run, first_id)
ORDER BY run, round, place;
