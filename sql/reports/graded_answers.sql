-- graded_answers: held-out answers of the student to read: four right, four wrong a round. They come one per verdict
-- reason before a second of any, and otherwise in the order of sample, then of prompt_id, a hash.
-- grain: run, round, correct, place
-- columns:
--   run: run id
--   round: round, from 0
--   correct: verdict
--   place: from 1
--   task: name of the benchmark
--   prompt_id: 63-bit hash of the problem's content
--   sample: from 0
--   messages: JSON list of {role, content}
--   response_text: decoded view
--   response_tokens: count
--   finish_reason: stop | length
--   answer: what was read out of the response
--   ground_truth: reference answer
--   verdict_reason: why
WITH numbered AS (
    SELECT *, row_number() OVER (PARTITION BY run, round, correct, verdict_reason
                                 ORDER BY sample, prompt_id, task) AS nth
    FROM evaluations
    WHERE role = 'student'
    QUALIFY nth <= 4
)
SELECT run, round, correct,
       row_number() OVER (PARTITION BY run, round, correct
                          ORDER BY nth, sample, prompt_id, task)::INTEGER AS place,
       task, prompt_id, sample, messages, response_text, response_tokens, finish_reason, answer, ground_truth,
       verdict_reason
FROM numbered
QUALIFY place <= 4
ORDER BY run, round, correct DESC, place;
