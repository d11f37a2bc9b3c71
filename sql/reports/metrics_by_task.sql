-- metrics_by_task: the tasks of each round side by side. `task_metrics` has every metric.
-- grain: run, round, task
-- columns:
--   run: run id
--   round: round, from 0
--   task: prompts.task
--   rollouts: count
--   tokens: count, written by the student
--   accuracy: mean reward of the rollouts that have one
--   reward_auroc: share of 1, chance that a right rollout has a higher mean gap than a wrong one, ties counting half
--   reverse_kl: nats, mean KL(p || q) of the student's top-k and one bucket for the rest, before training
--   mean_gap: nats, mean of teacher_log_prob - student_log_prob
--   overlap_ratio: share of 1, mean of |S^p & S^q| / k
--   student_mass: share of 1, mean mass of the student on the teacher's top-K
--   mean_length: response tokens per rollout
--   truncation_rate: share of rollouts with finish_reason 'length'
--   repeat_ratio: share of 1, mean over rollouts of the share of 3-grams that occurred before in the same response
SELECT run, round, task, rollouts, tokens, accuracy, reward_auroc, reverse_kl, mean_gap, overlap_ratio, student_mass,
       mean_length, truncation_rate, repeat_ratio
FROM task_metrics
ORDER BY run, round, task;
