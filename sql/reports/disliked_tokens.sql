-- disliked_tokens: the ten tokens of each round that the teacher dislikes most, on average. This is what the detector
-- of pipeline/mask/detector.py looks at. Tokens sampled less than 8 times in the round are left out.
-- grain: run, round, token_id
-- columns:
--   run: run id
--   round: round, from 0
--   place: from 1, the most disliked first
--   token_id: id
--   token_text: its text, null where the run's tokenizer cannot be read
--   tokens: count of times it was sampled
--   mean_gap: nats, mean of teacher_log_prob - student_log_prob
--   mean_student_prob: share of 1, the student's mean probability of it where it was sampled
--   mean_teacher_prob: share of 1, the teacher's
WITH disliked AS (
    SELECT run, round, token_id, count(*) AS tokens, avg(gap) AS mean_gap,
           avg(exp(student_log_prob::DOUBLE)) AS mean_student_prob,
           avg(exp(teacher_log_prob::DOUBLE)) AS mean_teacher_prob,
           row_number() OVER (PARTITION BY run, round ORDER BY avg(gap), token_id)::INTEGER AS place
    FROM tokens
    GROUP BY run, round, token_id
    HAVING count(*) >= 8
    QUALIFY place <= 10
)
SELECT run, round, place, token_id, token_text, tokens, mean_gap, mean_student_prob, mean_teacher_prob
FROM disliked LEFT JOIN vocabulary USING (run, token_id)
ORDER BY run, round, place;
