-- overlap_token_advantage(teacher_ids, student_ids, student_log_probs, teacher_log_probs): how both models rank their
-- overlap (Rethinking OPD). Mean over the overlap O of p-(log q- - log p-), p- and q- renormalised on O. With P, Q the
-- masses on O and A the sum of p (log q - log p) it is (A / P + log P - log Q) / |O|; null where O is empty.
-- grain: scalar; lists of one entry hold what is used more than once, which a macro would compute again
-- columns:
--   teacher_ids: token ids of the teacher's top-K, descending
--   student_ids: token ids of the student's top-k, descending
--   student_log_probs: nats, the student's at student_ids
--   teacher_log_probs: nats, the teacher's at student_ids
--   (result): nats; 0 where both agree on O, negative elsewhere
CREATE MACRO overlap_token_advantage(teacher_ids, student_ids, student_log_probs, teacher_log_probs) AS
    list_transform(
        [{'log_p': list_where(student_log_probs[:len(teacher_ids)], in_overlap(teacher_ids, student_ids)),
          'log_q': list_where(teacher_log_probs[:len(teacher_ids)], in_overlap(teacher_ids, student_ids))}],
        lambda o: list_transform(
            [{'A': list_sum(list_transform(o.log_p, lambda x, i: exp(x::DOUBLE) * (o.log_q[i]::DOUBLE - x::DOUBLE))),
              'P': list_sum(list_transform(o.log_p, lambda x: exp(x::DOUBLE))),
              'Q': list_sum(list_transform(o.log_q, lambda x: exp(x::DOUBLE))),
              'size': len(o.log_p)}],
            lambda s: CASE WHEN s.size > 0 THEN (s.A / s.P + ln(s.P) - ln(s.Q)) / s.size END)[1])[1];
