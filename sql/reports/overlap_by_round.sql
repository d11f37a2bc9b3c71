-- overlap_by_round: how far the student's top-k has moved towards the teacher's. Rethinking OPD's metrics.
-- grain: run, round
-- columns:
--   run: run id
--   round: round, from 0
--   overlap_ratio: share of 1, mean of |S^p & S^q| / k
--   overlap_mass_student: share of 1, mean mass of the student on S^p & S^q
--   overlap_mass_teacher: share of 1, mean mass of the teacher on S^p & S^q; on the grid, 1 may read 1.0002
--   overlap_token_advantage: nats, mean over S^p & S^q of p-(log q- - log p-), renormalised there
SELECT run, round, overlap_ratio, overlap_mass_student, overlap_mass_teacher, overlap_token_advantage
FROM rounds
ORDER BY run, round;
