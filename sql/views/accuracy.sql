-- accuracy: how well a model answered a benchmark. Intervals are of 95 % (Wilson) and count problems, not answers:
-- answers to one problem are not independent.
-- grain: run, round, role, task
-- columns:
--   run: run id
--   round: round, from 0
--   role: student (after the round) | start (the student that began the run) | teacher
--   task: name of the benchmark
--   problems: count
--   samples: count of graded answers
--   k: answers per problem
--   avg_at_k: share of 1, of answers that are right
--   avg_at_k_low: lower end
--   avg_at_k_high: upper end
--   pass_at_k: share of 1, of problems with a right answer among k; macro pass_at_k() for fewer draws
--   pass_at_k_low: lower end
--   pass_at_k_high: upper end
--   truncation_rate: share of answers that were cut off at the token limit
CREATE VIEW accuracy AS
SELECT run, round, role, task, problems, samples, k,
       avg_at_k, wilson_low(avg_at_k, problems) AS avg_at_k_low, wilson_high(avg_at_k, problems) AS avg_at_k_high,
       pass_at_k, wilson_low(pass_at_k, problems) AS pass_at_k_low, wilson_high(pass_at_k, problems) AS pass_at_k_high,
       truncation_rate
FROM (
    SELECT run, round, role, task, count(*) AS problems, sum(answers)::BIGINT AS samples, max(answers) AS k,
           sum(right_answers) / sum(answers) AS avg_at_k, avg((right_answers > 0)::INTEGER) AS pass_at_k,
           sum(cut_off) / sum(answers) AS truncation_rate
    FROM (
        SELECT run, round, role, task, prompt_id, count(*) AS answers, count(*) FILTER (correct) AS right_answers,
               count(*) FILTER (finish_reason = 'length') AS cut_off
        FROM evaluations GROUP BY run, round, role, task, prompt_id
    )
    GROUP BY run, round, role, task
);
