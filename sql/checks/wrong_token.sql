-- wrong_token: scores that name another token than the rollout has at that position.
-- grain: run, round
-- columns:
--   run: run id
--   round: round, from 0
--   tokens: count, that fail
--   detail: what is wrong, on one line
SELECT run, round, count(*) AS tokens,
       format('{} scores are of other tokens than their rollouts hold, the first at rollout {} position {}', count(*),
              arg_min(rollout_id, (rollout_id, position)), arg_min(position, (rollout_id, position))) AS detail
FROM tokens JOIN rollouts USING (run, round, rollout_id)
WHERE token_id IS DISTINCT FROM response_tokens[position + 1]
GROUP BY run, round
ORDER BY run, round;
