-- accuracy_by_depth: how often student and teacher come out right from prefixes of rollouts. Both go on from the
-- student's rollouts, cut at some depth: Rethinking OPD's depth curve, and how far the prefix leads the teacher astray
-- (Many Faces).
-- grain: run, round, task, depth
-- columns:
--   run: run id
--   round: round, from 0
--   task: prompts.task
--   depth: response tokens of the rollout that were kept as a prefix
--   rollouts: count, continued from this depth
--   continuations: count, of both roles
--   student_accuracy: share of 1, of the student's continuations that are right
--   student_accuracy_low: lower end of the 95 % interval (Wilson), which counts rollouts
--   student_accuracy_high: upper end
--   teacher_accuracy: share of 1, of the teacher's
--   teacher_accuracy_low: lower end
--   teacher_accuracy_high: upper end
--   continuation_advantage: share of 1, teacher_accuracy - student_accuracy
--   right_rollouts: count, of the rollouts that are right as the student ended them
--   student_right_to_wrong: share of 1, of the student's continuations of right rollouts that are wrong
--   teacher_right_to_wrong: share of 1, of the teacher's
--   student_turned_wrong: count of the student's continuations of right rollouts that are wrong
--   teacher_turned_wrong: count of the teacher's
--   wrong_rollouts: count, of the rollouts that are wrong as the student ended them
--   student_wrong_to_right: share of 1, of the student's continuations of wrong rollouts that are right
--   teacher_wrong_to_right: share of 1, of the teacher's
--   student_turned_right: count of the student's continuations of wrong rollouts that are right
--   teacher_turned_right: count of the teacher's
SELECT run, round, task, depth, count(DISTINCT rollout_id) AS rollouts, count(*) AS continuations,
       avg(correct::INTEGER) FILTER (role = 'student') AS student_accuracy,
       wilson_low(student_accuracy, count(DISTINCT rollout_id) FILTER (role = 'student')) AS student_accuracy_low,
       wilson_high(student_accuracy, count(DISTINCT rollout_id) FILTER (role = 'student')) AS student_accuracy_high,
       avg(correct::INTEGER) FILTER (role = 'teacher') AS teacher_accuracy,
       wilson_low(teacher_accuracy, count(DISTINCT rollout_id) FILTER (role = 'teacher')) AS teacher_accuracy_low,
       wilson_high(teacher_accuracy, count(DISTINCT rollout_id) FILTER (role = 'teacher')) AS teacher_accuracy_high,
       teacher_accuracy - student_accuracy AS continuation_advantage,
       count(DISTINCT rollout_id) FILTER (prefix_correct) AS right_rollouts,
       avg((NOT correct)::INTEGER) FILTER (role = 'student' AND prefix_correct) AS student_right_to_wrong,
       avg((NOT correct)::INTEGER) FILTER (role = 'teacher' AND prefix_correct) AS teacher_right_to_wrong,
       count(*) FILTER (role = 'student' AND prefix_correct AND NOT correct) AS student_turned_wrong,
       count(*) FILTER (role = 'teacher' AND prefix_correct AND NOT correct) AS teacher_turned_wrong,
       count(DISTINCT rollout_id) FILTER (NOT prefix_correct) AS wrong_rollouts,
       avg(correct::INTEGER) FILTER (role = 'student' AND NOT prefix_correct) AS student_wrong_to_right,
       avg(correct::INTEGER) FILTER (role = 'teacher' AND NOT prefix_correct) AS teacher_wrong_to_right,
       count(*) FILTER (role = 'student' AND NOT prefix_correct AND correct) AS student_turned_right,
       count(*) FILTER (role = 'teacher' AND NOT prefix_correct AND correct) AS teacher_turned_right
FROM continuations
GROUP BY run, round, task, depth
ORDER BY run, round, task, depth;
