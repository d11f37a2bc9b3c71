-- position_metrics: `rounds` along the response, by bucket of positions. The same metrics with the same definitions
-- (macros token_metrics and reward_auroc). A round has at most 32 buckets, of 1, 2, 4, ... positions. Repetition along
-- the response is the report repetition_by_position.
-- grain: run, round, first_position
-- columns:
--   run: run id
--   round: round, from 0
--   first_position: first position of the bucket
--   positions: count, positions per bucket
--   rollouts: count, those with a token in the bucket
--   reward_auroc: share of 1, chance that a right rollout has a higher mean gap here than a wrong one; a tie is half
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
CREATE VIEW position_metrics AS
SELECT run, round, part AS first_position, positions, rollouts, reward_auroc, tokens,
       mean_gap, gap_lower_decile, positive_reward_share, reverse_kl, teacher_entropy, student_entropy, entropy_gap,
       teacher_mass, student_mass, not_in_topk_ratio, overlap_ratio, overlap_mass_student, overlap_mass_teacher,
       overlap_token_advantage, train_rollout_logprob_abs_diff, rollout_ratio, rollout_kl, rollout_k3, rollout_chi2,
       rollout_ess
FROM token_metrics(position_bucket(position, positions))
LEFT JOIN reward_auroc(position_bucket(position, positions)) USING (run, round, part);
