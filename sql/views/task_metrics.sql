-- task_metrics: `rounds` for each task of a round. The same metrics with the same definitions (macros rollout_metrics,
-- token_metrics and reward_auroc). What training and evaluation say is not divided by task: `steps`, `accuracy`.
-- grain: run, round, task
-- columns:
--   run: run id
--   round: round, from 0
--   task: prompts.task
--   prompts: count, distinct
--   rollouts: count
--   mean_length: response tokens per rollout
--   truncation_rate: share of rollouts with finish_reason 'length'
--   repeat_ratio: share of 1, mean over rollouts of the share of 3-grams that occurred before in the same response
--   accuracy: mean reward of the rollouts that have one
--   reward_auroc: share of 1, chance that a right rollout has a higher mean gap than a wrong one, ties counting half
--   tokens: count, written by the student
--   tokens: count, written by the student
--   mean_gap: nats, mean of teacher_log_prob - student_log_prob
--   gap_lower_decile: nats, 10 % of tokens have a gap below it
--   positive_reward_share: share of tokens that the teacher finds likelier than the student does
--   reverse_kl: nats, mean KL(p || q) of the student's top-k and one bucket for the rest, before training
--   teacher_entropy: nats, mean
--   student_entropy: nats, mean
--   entropy_gap: nats, mean of |teacher_entropy - student_entropy|
--   teacher_mass: share of 1, mean mass of the teacher on its top-K
--   student_mass: share of 1, mean mass of the student on the teacher's top-K; LSM barely learns below .85
--   not_in_topk_ratio: share of sampled tokens outside the teacher's top-K
--   overlap_ratio: share of 1, mean of |S^p & S^q| / k
--   overlap_mass_student: share of 1, mean mass of the student on S^p & S^q
--   overlap_mass_teacher: share of 1, mean mass of the teacher on S^p & S^q; on the grid, 1 may read 1.0002
--   overlap_token_advantage: nats, mean over S^p & S^q of p-(log q- - log p-), renormalised there
--   train_rollout_logprob_abs_diff: nats, mean of |student_log_prob - rollout_log_prob|
--   rollout_ratio: mean of student probability / the rollout engine's, both raw: 1 where scorer and engine agree
--   rollout_kl: nats, mean of rollout_log_prob - student_log_prob: KL of the engine's density from the scorer's
--   rollout_k3: nats, mean of ratio - 1 - log ratio, which is never negative
--   rollout_chi2: mean of ratio^2, less 1
--   rollout_ess: share of 1, effective sample size of the ratios: mean(ratio)^2 / mean(ratio^2)
CREATE VIEW task_metrics AS
SELECT run, round, part AS task, prompts, written.rollouts, mean_length, truncation_rate, repeat_ratio, accuracy,
       reward_auroc, coalesce(tokens, 0) AS tokens, mean_gap, gap_lower_decile, positive_reward_share, reverse_kl,
       teacher_entropy, student_entropy, entropy_gap, teacher_mass, student_mass, not_in_topk_ratio, overlap_ratio,
       overlap_mass_student, overlap_mass_teacher, overlap_token_advantage, train_rollout_logprob_abs_diff,
       rollout_ratio, rollout_kl, rollout_k3, rollout_chi2, rollout_ess
FROM rollout_metrics(task) AS written
LEFT JOIN token_metrics(task) USING (run, round, part)
LEFT JOIN reward_auroc(task) USING (run, round, part);
