-- evaluations: graded answers to held-out problems.
-- grain: run, round, role, task, prompt_id, sample
-- columns:
--   run: run id
--   round: round, from 0
--   prompt_id: 63-bit hash of the problem's content
--   sample: from 0
--   task: name of the benchmark
--   data_source: name of the data set
--   messages: JSON list of {role, content}
--   model: sha256 fingerprint of the graded model
--   role: student (after the round) | start (the student that began the run) | teacher
--   response_text: decoded view
--   response_tokens: count
--   finish_reason: stop | length
--   answer: what was read out of the response
--   ground_truth: reference answer
--   correct: verdict
--   verdict_reason: why
--   seed: of this sample
--   checkpoint: number of the graded checkpoint; null for the teacher
CREATE VIEW evaluations AS
SELECT *, CASE role WHEN 'student' THEN round + 1 WHEN 'start' THEN 0 END AS checkpoint
FROM raw.evaluation;
