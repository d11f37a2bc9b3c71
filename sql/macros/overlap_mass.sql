-- overlap_mass(teacher_ids, student_ids, log_probs): mass of one model on S^p & S^q.
-- grain: scalar
-- columns:
--   teacher_ids: token ids of the teacher's top-K, descending
--   student_ids: token ids of the student's top-k, descending
--   log_probs: nats, that model's at student_ids
--   (result): share of 1, up to the error of the grid that log_probs lie on
CREATE MACRO overlap_mass(teacher_ids, student_ids, log_probs) AS
    list_sum(list_transform(in_overlap(teacher_ids, student_ids),
                            lambda shared, i: CASE WHEN shared THEN exp(log_probs[i]::DOUBLE) ELSE 0 END));
