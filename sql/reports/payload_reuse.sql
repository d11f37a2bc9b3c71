-- payload_reuse: rollouts whose teacher columns were found in the store, or computed. A hit was found, a miss computed.
-- A branch's first rounds are told once, as their owner's.
-- grain: run, round
-- columns:
--   run: run id
--   round: round, from 0
--   rollouts: count, scored
--   hits: count of rollouts
--   misses: count of rollouts
--   hit_share: share of 1, of the rollouts
--   hit_tokens: count
--   miss_tokens: count
--   sources: list of {manifest_id, run, round, rollouts}: the rounds whose payloads were reused, run and round null for
--     those that are not among the rounds asked for
WITH payloads AS (
    SELECT run, round, reused_from, count(*) AS rollouts, sum(tokens)::BIGINT AS tokens
    FROM (SELECT run, round, rollout_id, any_value(reused_from) AS reused_from, count(*) AS tokens
          FROM tokens GROUP BY run, round, rollout_id)
    GROUP BY run, round, reused_from
),
manifests AS (
    SELECT manifest_id AS reused_from, any_value(owner) AS from_run, any_value(round) AS from_round
    FROM raw.rounds WHERE manifest_id IS NOT NULL
    GROUP BY manifest_id
)
SELECT run, round, sum(rollouts)::BIGINT AS rollouts,
       coalesce(sum(rollouts) FILTER (reused_from IS NOT NULL), 0)::BIGINT AS hits,
       coalesce(sum(rollouts) FILTER (reused_from IS NULL), 0)::BIGINT AS misses,
       hits / sum(rollouts) AS hit_share,
       coalesce(sum(tokens) FILTER (reused_from IS NOT NULL), 0)::BIGINT AS hit_tokens,
       coalesce(sum(tokens) FILTER (reused_from IS NULL), 0)::BIGINT AS miss_tokens,
       coalesce(list({'manifest_id': reused_from, 'run': from_run, 'round': from_round, 'rollouts': rollouts}
                     ORDER BY rollouts DESC, reused_from) FILTER (reused_from IS NOT NULL), []) AS sources
FROM payloads LEFT JOIN manifests USING (reused_from)
     SEMI JOIN raw.rounds ON payloads.run = rounds.owner AND payloads.round = rounds.round
GROUP BY run, round
ORDER BY run, round;
