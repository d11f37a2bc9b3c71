-- reward_auroc(divided_by): how well the mean gap tells right answers from wrong ones. The chance that the mean gap of
-- a right rollout is above that of a wrong one, ties counting half.
-- grain: a table: run, round, part
-- columns:
--   divided_by: column or expression of `tokens` and `bucket_widths` that becomes `part`; run for undivided rounds
--   (result): run, round, part, reward_auroc: share of 1, null without a right or without a wrong rollout; rollouts:
--     count, those with tokens there
CREATE MACRO reward_auroc(divided_by) AS TABLE
WITH scored AS (
    SELECT run, round, rollout_id, divided_by AS part,
           round(avg(teacher_log_prob - student_log_prob), 9) AS mean_gap  -- a tie is one in any order of summation
    FROM raw.tokens LEFT JOIN bucket_widths() USING (run, round)
    GROUP BY run, round, rollout_id, part
),
graded AS (
    SELECT run, round, part, mean_gap, count(*) FILTER (reward = 1) AS right_ones,
           count(*) FILTER (reward <> 1) AS wrong_ones, count(*) AS rollouts
    FROM scored LEFT JOIN (SELECT run, round, rollout_id, reward FROM raw.rollouts) USING (run, round, rollout_id)
    GROUP BY run, round, part, mean_gap
),
ordered AS (
    SELECT *, sum(wrong_ones) OVER (PARTITION BY run, round, part ORDER BY mean_gap) - wrong_ones / 2 AS wrong_below
    FROM graded
)
SELECT run, round, part, sum(right_ones * wrong_below) / nullif(sum(right_ones) * sum(wrong_ones), 0) AS reward_auroc,
       sum(rollouts)::BIGINT AS rollouts
FROM ordered
GROUP BY run, round, part;
