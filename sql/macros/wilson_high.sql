-- wilson_high(share, trials): upper end of the 95 % interval of a share (Wilson 1927). Of `trials` independent trials.
-- grain: scalar
-- columns:
--   share: share of 1
--   trials: count
--   (result): share of 1; null for no trials
CREATE MACRO wilson_high(share, trials) AS
    CASE WHEN trials > 0 THEN greatest(share, least(1.0, (share + 1.959964 * 1.959964 / (2 * trials) + 1.959964 * sqrt(
        share * (1 - share) / trials + 1.959964 * 1.959964 / (4 * trials * trials)))
        / (1 + 1.959964 * 1.959964 / trials))) END;
