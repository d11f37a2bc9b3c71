-- rollout_metrics(divided_by): what the views of metrics say of rollouts, defined once. For `rounds` and
-- `task_metrics`.
-- grain: a table: run, round, part
-- columns:
--   divided_by: column or expression of `rollouts` that becomes `part`; run for undivided rounds
--   (result): the columns of these views, from prompts to accuracy
CREATE MACRO rollout_metrics(divided_by) AS TABLE
SELECT run, round, divided_by AS part,
       list_unique(list(prompt_id))::BIGINT AS prompts,  -- count(DISTINCT) would be computed where nobody asks for it
       count(*) AS rollouts,
       avg(len(response_tokens)) AS mean_length,
       avg((finish_reason = 'length')::INTEGER) AS truncation_rate,
       avg(repeat_ratio(response_tokens)) AS repeat_ratio,
       avg(reward) AS accuracy
FROM raw.rollouts
GROUP BY run, round, part;
