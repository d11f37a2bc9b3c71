-- health: which of each round's figures lie where they should. The scorer's student against the engine that wrote:
-- rollout_ratio, rollout_kl, rollout_ess. The smallest ess of a training step. And student_mass: below .85 a loss that
-- is renormalised on the teacher's top-K barely learns; other losses do without.
-- grain: run, round, figure
-- columns:
--   run: run id
--   round: round, from 0
--   figure: a column of `rounds`
--   value: its value, in its unit in `rounds`
--   least: smallest value that is well, null for any
--   most: largest value that is well, null for any
--   holds: whether the value lies between them, null where there is none
SELECT run, round, figure, value, least, most,
       value >= coalesce(least, value) AND value <= coalesce(most, value) AS holds
FROM (
    SELECT run, round, unnest([
        {'figure': 'rollout_ratio', 'value': rollout_ratio, 'least': 0.5::DOUBLE, 'most': 2::DOUBLE},
        {'figure': 'rollout_kl', 'value': rollout_kl, 'least': -0.1, 'most': 0.1},
        {'figure': 'rollout_ess', 'value': rollout_ess, 'least': 0.3, 'most': NULL},
        {'figure': 'ess', 'value': ess, 'least': 0.3, 'most': NULL},
        {'figure': 'student_mass', 'value': student_mass, 'least': 0.85, 'most': NULL}], recursive := true),
        unnest(range(5)) AS place
    FROM rounds
)
ORDER BY run, round, place;
