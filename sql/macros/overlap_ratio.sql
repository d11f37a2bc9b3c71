-- overlap_ratio(teacher_ids, student_ids): |S^p & S^q| / k (Rethinking OPD), k the shorter length.
-- grain: scalar
-- columns:
--   teacher_ids: token ids of the teacher's top-K, descending
--   student_ids: token ids of the student's top-k, descending
--   (result): share of 1
CREATE MACRO overlap_ratio(teacher_ids, student_ids) AS
    overlap_count(teacher_ids, student_ids) / least(len(teacher_ids), len(student_ids));
