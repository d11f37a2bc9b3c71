-- gap_histogram: how the gap is distributed: tokens per quarter of a nat. The first bucket also holds every gap below
-- -8, the last every gap of 4 and more.
-- grain: run, round, from_gap
-- columns:
--   run: run id
--   round: round, from 0
--   from_gap: nats, lower end of the bucket
--   tokens: count
--   share: share of the round's tokens
SELECT run, round, greatest(-8.0, least(4.0, floor(gap::DOUBLE * 4) / 4))::DOUBLE AS from_gap, count(*) AS tokens,
       count(*) / sum(count(*)) OVER (PARTITION BY run, round) AS share
FROM tokens
GROUP BY run, round, from_gap
ORDER BY run, round, from_gap;
