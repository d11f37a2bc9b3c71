-- rounds: one row per round: counts, and the means that tell how it went. Columns that are not selected are not read:
-- reverse_kl and the overlap columns read the top-K lists (.3 to 1.2 s per million tokens), the others are scalar
-- scans. `task_metrics` and `position_metrics` divide a round, with the same definitions (macros rollout_metrics,
-- token_metrics, reward_auroc).
-- grain: run, round
-- columns:
--   run: run id
--   round: round, from 0
--   committed: whether the round has a manifest
--   manifest_id: sha256 of the manifest, null while the round is in progress
--   owner: run that holds the round: another one for a branch's first rounds. Sums over runs take owner = run
--   prompts: count, distinct
--   rollouts: count
--   mean_length: response tokens per rollout
--   truncation_rate: share of rollouts with finish_reason 'length'
--   repeat_ratio: share of 1, mean over rollouts of the share of 3-grams that occurred before in the same response
--   accuracy: mean reward of the rollouts that have one
--   reward_auroc: share of 1, chance that a right rollout has a higher mean gap than a wrong one, ties counting half
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
--   masked_share: share of tokens with weight 0
--   steps: count, optimizer steps that were applied
--   loss: nats, mean over the unmasked tokens of these steps
--   opd_reverse_kl: nats, mean over steps of log p - log q on sampled tokens
--   drift: nats, largest KL(p_0 || p_now) of a step
--   ess: share of 1, smallest effective sample size of a step
--   staleness: optimizer steps, largest
--   stopped: why training ended: done | drift_fuse | age_cap
--   closing_positions: count, cached positions on which the round's final student was looked at; see `trainings`
--   closing_teacher_kl: nats, KL(p || q) on the teacher's top-K and one bucket for the rest
--   closing_student_entropy: nats
--   closing_student_mass: share of 1
--   closing_drift: nats
--   closing_ess: share of 1
--   closing_topk_left: share of 1
--   closing_opd_reverse_kl: nats
--   evaluated: count, graded answers of the student that the round made; evaluation shows once the round is committed
--   avg_at_k: share of 1, its right answers; mean over benchmarks
--   pass_at_k: share of 1, its problems with a right answer among k; mean over benchmarks
--   evaluation_truncation_rate: share of its answers that were cut off
--   start_avg_at_k: share of 1, the student that began the run
--   teacher_avg_at_k: share of 1, the teacher; the one graded last, where a branch has another
--   gap_recovery: (avg_at_k - start_avg_at_k) / (teacher_avg_at_k - start_avg_at_k); null unless the teacher is better
CREATE VIEW rounds AS
SELECT run, round,
       coalesce(any_value(committed), false) AS committed,
       any_value(manifest_id) AS manifest_id,
       any_value(owner) AS owner,
       coalesce(any_value(prompts), 0) AS prompts,
       coalesce(any_value(rollouts), 0) AS rollouts,
       any_value(mean_length) AS mean_length,
       any_value(truncation_rate) AS truncation_rate,
       any_value(repeat_ratio) AS repeat_ratio,
       any_value(accuracy) AS accuracy,
       any_value(reward_auroc) AS reward_auroc,
       coalesce(any_value(tokens), 0) AS tokens,
       any_value(mean_gap) AS mean_gap,
       any_value(gap_lower_decile) AS gap_lower_decile,
       any_value(positive_reward_share) AS positive_reward_share,
       any_value(reverse_kl) AS reverse_kl,
       any_value(teacher_entropy) AS teacher_entropy,
       any_value(student_entropy) AS student_entropy,
       any_value(entropy_gap) AS entropy_gap,
       any_value(teacher_mass) AS teacher_mass,
       any_value(student_mass) AS student_mass,
       any_value(not_in_topk_ratio) AS not_in_topk_ratio,
       any_value(overlap_ratio) AS overlap_ratio,
       any_value(overlap_mass_student) AS overlap_mass_student,
       any_value(overlap_mass_teacher) AS overlap_mass_teacher,
       any_value(overlap_token_advantage) AS overlap_token_advantage,
       any_value(train_rollout_logprob_abs_diff) AS train_rollout_logprob_abs_diff,
       any_value(rollout_ratio) AS rollout_ratio,
       any_value(rollout_kl) AS rollout_kl,
       any_value(rollout_k3) AS rollout_k3,
       any_value(rollout_chi2) AS rollout_chi2,
       any_value(rollout_ess) AS rollout_ess,
       any_value(masked_share) AS masked_share,
       coalesce(any_value(steps), 0) AS steps,
       any_value(loss) AS loss,
       any_value(opd_reverse_kl) AS opd_reverse_kl,
       any_value(drift) AS drift,
       any_value(ess) AS ess,
       any_value(staleness) AS staleness,
       any_value(stopped) AS stopped,
       any_value(closing_positions) AS closing_positions,
       any_value(closing_teacher_kl) AS closing_teacher_kl,
       any_value(closing_student_entropy) AS closing_student_entropy,
       any_value(closing_student_mass) AS closing_student_mass,
       any_value(closing_drift) AS closing_drift,
       any_value(closing_ess) AS closing_ess,
       any_value(closing_topk_left) AS closing_topk_left,
       any_value(closing_opd_reverse_kl) AS closing_opd_reverse_kl,
       any_value(evaluated) AS evaluated,
       any_value(avg_at_k) AS avg_at_k,
       any_value(pass_at_k) AS pass_at_k,
       any_value(evaluation_truncation_rate) AS evaluation_truncation_rate,
       any_value(start_avg_at_k) AS start_avg_at_k,
       any_value(teacher_avg_at_k) AS teacher_avg_at_k,
       CASE WHEN any_value(teacher_avg_at_k) > any_value(start_avg_at_k)
           THEN (any_value(avg_at_k) - any_value(start_avg_at_k))
               / (any_value(teacher_avg_at_k) - any_value(start_avg_at_k)) END AS gap_recovery
FROM (
    SELECT run, round, committed, manifest_id, owner FROM raw.rounds
    UNION ALL BY NAME
    SELECT * EXCLUDE (part) FROM rollout_metrics(run)
    UNION ALL BY NAME
    SELECT * EXCLUDE (part, positions) FROM token_metrics(run)
    UNION ALL BY NAME
    SELECT run, round, avg((weight = 0)::INTEGER) AS masked_share FROM raw.mask GROUP BY run, round
    UNION ALL BY NAME
    SELECT run, round,
           count(*) FILTER (stopped IS NULL) AS steps,
           sum(loss * unmasked_tokens) FILTER (stopped IS NULL)
               / nullif(sum(unmasked_tokens) FILTER (stopped IS NULL), 0) AS loss,
           avg(opd_reverse_kl) AS opd_reverse_kl,
           max(drift) AS drift,
           min(ess) AS ess,
           max(staleness) AS staleness
    FROM steps GROUP BY run, round
    UNION ALL BY NAME
    SELECT run, round,
           sum(samples)::BIGINT AS evaluated,
           avg(avg_at_k) AS avg_at_k,
           avg(pass_at_k) AS pass_at_k,
           sum(truncation_rate * samples) / sum(samples) AS evaluation_truncation_rate
    FROM accuracy SEMI JOIN raw.rounds ON accuracy.run = rounds.run AND accuracy.round = rounds.round AND committed
    WHERE role = 'student' GROUP BY run, round
    UNION ALL BY NAME
    SELECT run, raw.rounds.round, start_avg_at_k, teacher_avg_at_k
    FROM raw.rounds JOIN (
        SELECT run, avg(start) AS start_avg_at_k, avg(teacher) AS teacher_avg_at_k
        FROM (
            SELECT run, task, any_value(avg_at_k) FILTER (role = 'start') AS start,
                   max_by(avg_at_k, round) FILTER (role = 'teacher') AS teacher
            FROM accuracy SEMI JOIN raw.rounds
                ON accuracy.run = rounds.run AND accuracy.round = rounds.round AND committed
            WHERE role <> 'student' GROUP BY run, task
        )
        GROUP BY run
    ) USING (run)
    UNION ALL BY NAME
    SELECT run, round, reward_auroc FROM reward_auroc(run)
    UNION ALL BY NAME
    SELECT * EXCLUDE (steps, run_steps) FROM raw.trainings
)
GROUP BY run, round;
