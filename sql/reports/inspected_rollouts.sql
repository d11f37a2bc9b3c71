-- inspected_rollouts: three rollouts of each round to read: the worst, the middle, the best. Those of the lowest and of
-- the highest mean gap, and the one in the middle of that order. A round of one rollout has the worst only, of two the
-- worst and the best.
-- grain: run, round, choice
-- columns:
--   run: run id
--   round: round, from 0
--   choice: worst | middle | best
--   rollout_id: rollouts.rollout_id
--   prompt_id: prompts.prompt_id
--   sample: from 0, within the prompt
--   task: prompts.task
--   tokens: count, written by the student
--   mean_gap: nats, mean of teacher_log_prob - student_log_prob
--   lowest_gap: nats
--   finish_reason: stop | length
--   reward: 1 right, 0 wrong, null without ground truth
--   ground_truth: reference answer
--   messages: JSON list of {role, content}
--   response_text: decoded view
WITH ordered AS (
    SELECT run, round, rollout_id, count(*) AS tokens, avg(gap) AS mean_gap, min(gap) AS lowest_gap,
           row_number() OVER (PARTITION BY run, round ORDER BY avg(gap), rollout_id) AS place,
           count(*) OVER (PARTITION BY run, round) AS places
    FROM tokens
    GROUP BY run, round, rollout_id
    QUALIFY place IN (1, (places + 1) // 2, places)
)
SELECT run, round, CASE place WHEN 1 THEN 'worst' WHEN places THEN 'best' ELSE 'middle' END AS choice, rollout_id,
       prompt_id, sample, task, tokens, mean_gap, lowest_gap, finish_reason, reward, ground_truth, messages,
       response_text
FROM ordered JOIN rollouts USING (run, round, rollout_id)
ORDER BY run, round, place;
