-- trainings: how each round's training ended, and how its final student does. On a fixed sample of the round's cached
-- positions: the drift, the reverse KL and the rest that `steps` has before each step, here after the last one.
-- grain: run, round
-- columns:
--   run: run id
--   round: round, from 0
--   steps: count, optimizer steps of this round
--   run_steps: count, of the run up to the end of this round
--   stopped: why it ended: done (all data) | drift_fuse | age_cap
--   closing_positions: count, positions behind the closing columns
--   closing_teacher_kl: nats, KL(p || q) on the teacher's top-K and one bucket for the rest, p the final student
--   closing_student_entropy: nats, p's, over the whole vocabulary
--   closing_student_mass: share of 1, p's mass on the teacher's top-K
--   closing_drift: nats, KL(p_0 || p) over the cached student top-k and its tail
--   closing_ess: share of 1, effective sample size of p / p_0 on the sampled tokens
--   closing_topk_left: share of 1, of p's top-k that the cached student top-k lacks
--   closing_opd_reverse_kl: nats, mean log p - log q on sampled tokens
CREATE VIEW trainings AS
SELECT * FROM raw.trainings;
