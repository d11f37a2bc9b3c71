-- reverse_kl_topk(student_log_probs, teacher_log_probs): KL(p || q) of the student's top-k and one bucket for the rest.
-- With p the student and q the teacher: at most the KL over the whole vocabulary, and near it where the top-k holds the
-- student's mass.
-- grain: scalar; a list of one entry holds what is used more than once, which a macro would compute again
-- columns:
--   student_log_probs: nats, on the grid, the student's top-k
--   teacher_log_probs: nats, on the grid, the teacher's at the same tokens
--   (result): nats; masses outside below 1e-6, which the grid cannot tell from 0, count as 1e-6; null where one of the
--     teacher's is
CREATE MACRO reverse_kl_topk(student_log_probs, teacher_log_probs) AS
    CASE WHEN list_count(teacher_log_probs) = len(teacher_log_probs) THEN list_transform(
        [{'inside': list_sum(list_transform(student_log_probs, lambda x, i:
              exp(x::DOUBLE) * (x::DOUBLE - teacher_log_probs[i]::DOUBLE))),
          'p_rest': greatest(1e-6, 1 - list_sum(list_transform(student_log_probs, lambda x: exp(x::DOUBLE)))),
          'q_rest': greatest(1e-6, 1 - list_sum(list_transform(teacher_log_probs, lambda x: exp(x::DOUBLE))))}],
        lambda s: s.inside + s.p_rest * (ln(s.p_rest) - ln(s.q_rest)))[1] END;
