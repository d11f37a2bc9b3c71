-- topk: the top-K lists exploded; a shorter list is null in its last ranks.
-- grain: run, round, rollout_id, position, rank
-- columns:
--   run: run id
--   round: round, from 0
--   rollout_id: rollouts.rollout_id
--   prompt_id: prompts.prompt_id
--   task: prompts.task
--   position: index into response_tokens
--   token_id: the sampled token
--   rank: from 1, in each model's own order
--   teacher_topk_id: token id, the teacher's entry at this rank
--   teacher_topk_log_prob: nats, on the grid, the teacher's at teacher_topk_id
--   student_log_prob_at_teacher_topk: nats, on the grid, the student's at teacher_topk_id; null unless stored
--   student_topk_id: token id, the student's entry at this rank
--   student_topk_log_prob: nats, on the grid, the student's at student_topk_id
--   teacher_log_prob_at_student_topk: nats, on the grid, the teacher's at student_topk_id
CREATE VIEW topk AS
SELECT run, round, rollout_id, prompt_id, task, position, token_id,
       unnest(range(1, 1 + greatest(len(teacher_topk_ids), len(student_topk_ids))))::INTEGER AS rank,
       unnest(teacher_topk_ids) AS teacher_topk_id,
       unnest(teacher_topk_log_probs) AS teacher_topk_log_prob,
       unnest(student_log_probs_at_teacher_topk) AS student_log_prob_at_teacher_topk,
       unnest(student_topk_ids) AS student_topk_id,
       unnest(student_topk_log_probs) AS student_topk_log_prob,
       unnest(teacher_log_probs_at_student_topk) AS teacher_log_prob_at_student_topk
FROM raw.tokens;
