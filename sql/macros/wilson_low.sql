-- wilson_low(share, trials): lower end of the 95 % interval of a share (Wilson 1927). Of `trials` independent trials.
-- grain: scalar
-- columns:
--   share: share of 1
--   trials: count
--   (result): share of 1; null for no trials
CREATE MACRO wilson_low(share, trials) AS
    CASE WHEN trials > 0 THEN least(share, greatest(0.0, (share + 1.959964 * 1.959964 / (2 * trials) - 1.959964 * sqrt(
        share * (1 - share) / trials + 1.959964 * 1.959964 / (4 * trials * trials)))
        / (1 + 1.959964 * 1.959964 / trials))) END;
