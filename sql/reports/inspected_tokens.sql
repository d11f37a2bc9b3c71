-- inspected_tokens: every token of the rollouts that `inspected_rollouts` names.
-- grain: run, round, rollout_id, position
-- columns:
--   run: run id
--   round: round, from 0
--   choice: worst | middle | best
--   rollout_id: rollouts.rollout_id
--   position: index into response_tokens
--   token_id: the sampled token
--   token_text: its text, null where the run's tokenizer cannot be read
--   gap: nats, teacher_log_prob - student_log_prob
--   student_log_prob: nats
--   teacher_log_prob: nats
--   teacher_rank: from 1
--   teacher_first: list of {token_id, token_text, log_prob}, the teacher's first three choices; nats, on the grid
--   weight: factor on this token's loss, 0 masks it; null where the round has no mask yet
--   reasons: masks that touched it
WITH ordered AS (
    SELECT run, round, rollout_id,
           row_number() OVER (PARTITION BY run, round ORDER BY avg(gap), rollout_id) AS place,
           count(*) OVER (PARTITION BY run, round) AS places
    FROM tokens
    GROUP BY run, round, rollout_id
    QUALIFY place IN (1, (places + 1) // 2, places)
),
shown AS (
    SELECT run, round, CASE place WHEN 1 THEN 'worst' WHEN places THEN 'best' ELSE 'middle' END AS choice, place,
           rollout_id, position, token_id, gap, student_log_prob, teacher_log_prob, teacher_rank,
           unnest([token_id] || teacher_topk_ids[:3]) AS id, unnest([NULL] || teacher_topk_log_probs[:3]) AS log_prob,
           unnest(range(1 + len(teacher_topk_ids[:3]))) AS nth
    FROM tokens JOIN ordered USING (run, round, rollout_id)
)
SELECT run, round, any_value(choice) AS choice, rollout_id, position, any_value(shown.token_id) AS token_id,
       any_value(token_text) FILTER (nth = 0) AS token_text, any_value(gap) AS gap,
       any_value(student_log_prob) AS student_log_prob, any_value(teacher_log_prob) AS teacher_log_prob,
       any_value(teacher_rank) AS teacher_rank,
       list({'token_id': id, 'token_text': token_text, 'log_prob': log_prob} ORDER BY nth) FILTER (nth > 0)
           AS teacher_first,
       any_value(weight) AS weight, any_value(reasons) AS reasons
FROM shown
LEFT JOIN (SELECT run, token_id AS id, token_text FROM vocabulary) AS texts USING (run, id)
LEFT JOIN raw.mask USING (run, round, rollout_id, position)
GROUP BY run, round, place, rollout_id, position
ORDER BY run, round, place, position;
