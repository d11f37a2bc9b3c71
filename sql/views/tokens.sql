-- tokens: one row per token that the student wrote, with its scores. Under the round's scoring key.
-- grain: run, round, rollout_id, position
-- columns:
--   run: run id
--   round: round, from 0
--   rollout_id: rollouts.rollout_id
--   prompt_id: prompts.prompt_id
--   task: prompts.task
--   position: index into response_tokens
--   token_id: the sampled token
--   rollout_log_prob: nats, the engine's, raw
--   sampling_log_prob: nats, of the density that was sampled
--   student_log_prob: nats, same checkpoint, our scorer
--   student_entropy: nats
--   teacher_log_prob: nats
--   teacher_rank: from 1
--   teacher_entropy: nats
--   teacher_log_tail: nats, teacher's log mass outside the teacher's top-K; null below ln 1e-4 for a vLLM teacher
--   student_log_tail: nats, student's log mass outside the teacher's top-K
--   teacher_topk_ids: token ids
--   teacher_topk_log_probs: nats, on the grid
--   student_topk_ids: token ids
--   student_topk_log_probs: nats, on the grid
--   teacher_log_probs_at_student_topk: nats, on the grid; null entries where a vLLM teacher did not list the token
--   student_log_probs_at_teacher_topk: nats, on the grid; null unless the config stores it
--   reused_from: manifest id of the round whose payload was reused
--   gap: nats, teacher_log_prob - student_log_prob; negative where the teacher disagrees
--   teacher_mass: share of 1, the teacher's mass on its top-K
--   student_mass: share of 1, the student's mass on the teacher's top-K
CREATE VIEW tokens AS
SELECT *,
       teacher_log_prob - student_log_prob AS gap,
       mass_inside(teacher_log_tail) AS teacher_mass,
       mass_inside(student_log_tail) AS student_mass
FROM raw.tokens;
