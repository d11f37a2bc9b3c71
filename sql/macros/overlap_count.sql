-- overlap_count(teacher_ids, student_ids): how many of the first k entries both lists share, k the shorter length.
-- grain: scalar
-- columns:
--   teacher_ids: token ids of the teacher's top-K, descending
--   student_ids: token ids of the student's top-k, descending
--   (result): count, 0 to k
CREATE MACRO overlap_count(teacher_ids, student_ids) AS
    len(list_filter(in_overlap(teacher_ids, student_ids), lambda shared: shared));
