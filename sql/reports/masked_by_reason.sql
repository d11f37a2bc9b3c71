-- masked_by_reason: what each mask touched. A token with two reasons counts under both.
-- grain: run, round, reason
-- columns:
--   run: run id
--   round: round, from 0
--   reason: as the mask gave it
--   tokens: count, touched by it
--   masked: count of those whose weight came out 0
--   share: share of the round's tokens that it touched
WITH reasons AS (
    SELECT run, round, unnest(reasons) AS reason, weight FROM masked_tokens
),
sizes AS (
    SELECT run, round, count(*) AS round_tokens FROM masked_tokens GROUP BY run, round
)
SELECT run, round, reason, count(*) AS tokens, count(*) FILTER (weight = 0) AS masked,
       count(*) / any_value(round_tokens) AS share
FROM reasons JOIN sizes USING (run, round)
GROUP BY run, round, reason
ORDER BY run, round, tokens DESC, reason;
