-- shifted_by_one: the teacher's answers belong to the neighbouring position: its first choice is the next (or
-- previous) token far more often than this one. At least 64 tokens.
-- grain: run, round
-- columns:
--   run: run id
--   round: round, from 0
--   tokens: count, that fail
--   detail: what is wrong, on one line
WITH matches AS (
    SELECT run, round, (teacher_topk_ids[1] = token_id)::INTEGER AS own,
           coalesce(teacher_topk_ids[1] = lead(token_id) OVER response, false)::INTEGER AS following,
           coalesce(teacher_topk_ids[1] = lag(token_id) OVER response, false)::INTEGER AS preceding
    FROM tokens
    WINDOW response AS (PARTITION BY run, round, rollout_id ORDER BY position)
)
SELECT run, round, count(*) AS tokens,
       format('the teacher''s first choice is the {} token on {:.0f} % of positions, and the token itself on {:.0f} %: '
              || 'shifted by one', if(avg(following) > avg(preceding), 'next', 'previous'),
              100 * greatest(avg(following), avg(preceding)), 100 * avg(own)) AS detail
FROM matches
GROUP BY run, round
HAVING count(*) >= 64 AND greatest(avg(following), avg(preceding)) > greatest(0.2, 2 * avg(own))
ORDER BY run, round;
