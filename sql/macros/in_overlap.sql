-- in_overlap(teacher_ids, student_ids): which of the first k student entries are among the teacher's. Among the
-- teacher's first k, that is; k is the shorter length.
-- grain: scalar; costs about .4 s per million rows at 32 x 16
-- columns:
--   teacher_ids: token ids of the teacher's top-K, descending
--   student_ids: token ids of the student's top-k, descending
--   (result): list of k booleans
CREATE MACRO in_overlap(teacher_ids, student_ids) AS
    list_transform(student_ids[:len(teacher_ids)],
                   lambda id: coalesce(list_position(teacher_ids, id) <= len(student_ids), false));
