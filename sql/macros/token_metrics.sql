-- token_metrics(divided_by): what the views of metrics say of tokens, defined once. For `rounds`, `task_metrics` and
-- `position_metrics`.
-- grain: a table: run, round, part
-- columns:
--   divided_by: column or expression of `tokens` and `bucket_widths` that becomes `part`; run for undivided rounds
--   (result): the columns of these views, from tokens to rollout_ess; one that is left out costs nothing. Of
--     what a vLLM teacher does not know, a tail counts as no mass, and an entry makes reverse_kl null
CREATE MACRO token_metrics(divided_by) AS TABLE
SELECT run, round, divided_by AS part,
       count(*) AS tokens,
       any_value(positions) AS positions,
       avg(gap) AS mean_gap,
       quantile_cont(gap, 0.1) AS gap_lower_decile,
       avg((gap > 0)::INTEGER) AS positive_reward_share,
       CASE WHEN NOT bool_or(partly_known)
            THEN avg(reverse_kl_topk(student_topk_log_probs, teacher_log_probs_at_student_topk)) END AS reverse_kl,
       avg(teacher_entropy) AS teacher_entropy,
       avg(student_entropy) AS student_entropy,
       avg(abs(teacher_entropy - student_entropy)) AS entropy_gap,
       avg(coalesce(mass_inside(teacher_log_tail), 1)) AS teacher_mass,
       avg(mass_inside(student_log_tail)) AS student_mass,
       avg((teacher_rank > len(teacher_topk_ids))::INTEGER) AS not_in_topk_ratio,
       avg(overlap_ratio(teacher_topk_ids, student_topk_ids)) AS overlap_ratio,
       avg(overlap_mass(teacher_topk_ids, student_topk_ids, student_topk_log_probs)) AS overlap_mass_student,
       avg(overlap_mass(teacher_topk_ids, student_topk_ids, teacher_log_probs_at_student_topk))
           AS overlap_mass_teacher,
       avg(overlap_token_advantage(teacher_topk_ids, student_topk_ids, student_topk_log_probs,
                                   teacher_log_probs_at_student_topk)) AS overlap_token_advantage,
       avg(abs(student_log_prob - rollout_log_prob)) AS train_rollout_logprob_abs_diff,
       avg(ratio) AS rollout_ratio,
       avg(rollout_log_prob::DOUBLE - student_log_prob::DOUBLE) AS rollout_kl,
       avg(ratio - 1 - (student_log_prob::DOUBLE - rollout_log_prob::DOUBLE)) AS rollout_k3,
       avg(ratio * ratio) - 1 AS rollout_chi2,
       avg(ratio) * avg(ratio) / avg(ratio * ratio) AS rollout_ess
FROM (SELECT *, teacher_log_prob - student_log_prob AS gap, sampled_ratio(student_log_prob, rollout_log_prob) AS ratio,
             list_count(teacher_log_probs_at_student_topk) < len(teacher_log_probs_at_student_topk) AS partly_known
      FROM raw.tokens)
LEFT JOIN bucket_widths() USING (run, round)
GROUP BY run, round, part;
