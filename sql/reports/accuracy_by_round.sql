-- accuracy_by_round: held-out problems that start, student and teacher solve. The start is the student that began the
-- run.
-- grain: run, task, role, round
-- columns:
--   run: run id
--   task: name of the benchmark
--   role: start (the student that began the run) | student (after the round) | teacher
--   round: round, from 0
--   problems: count
--   k: answers per problem
--   avg_at_k: share of 1, of answers that are right
--   avg_at_k_low: lower end of the 95 % interval
--   avg_at_k_high: upper end
--   gap_recovery: share of the way from the start's avg_at_k to the teacher's; null unless the teacher is better
--   pass_at_k: share of 1, of problems with a right answer among k
--   pass_at_k_low: lower end of the 95 % interval
--   pass_at_k_high: upper end
--   truncation_rate: share of answers that were cut off at the token limit
SELECT run, task, role, round, problems, k, avg_at_k, avg_at_k_low, avg_at_k_high,
       CASE WHEN teacher > start THEN (avg_at_k - start) / (teacher - start) END AS gap_recovery,
       pass_at_k, pass_at_k_low, pass_at_k_high, truncation_rate
FROM accuracy LEFT JOIN (
    SELECT run, task, any_value(avg_at_k) FILTER (role = 'start') AS start,
           max_by(avg_at_k, round) FILTER (role = 'teacher') AS teacher
    FROM accuracy GROUP BY run, task
) USING (run, task)
ORDER BY run, task, role = 'teacher', role <> 'start', round;
