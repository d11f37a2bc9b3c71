-- lengths_by_round: how long the responses are, the environment's tokens included.
-- grain: run, round
-- columns:
--   run: run id
--   round: round, from 0
--   rollouts: count
--   shortest: tokens
--   lower_decile: tokens, 10 % of the responses are shorter
--   median: tokens
--   mean_length: tokens
--   upper_decile: tokens, 10 % of the responses are longer
--   longest: tokens
--   truncated: count of rollouts with finish_reason 'length'
--   truncation_rate: share of rollouts
SELECT run, round, count(*) AS rollouts, min(len(response_tokens)) AS shortest,
       quantile_cont(len(response_tokens), 0.1) AS lower_decile, median(len(response_tokens)) AS median,
       avg(len(response_tokens)) AS mean_length, quantile_cont(len(response_tokens), 0.9) AS upper_decile,
       max(len(response_tokens)) AS longest, count(*) FILTER (finish_reason = 'length') AS truncated,
       truncated / count(*) AS truncation_rate
FROM rollouts
GROUP BY run, round
ORDER BY run, round;
