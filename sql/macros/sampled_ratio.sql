-- sampled_ratio(log_p, log_mu): p / mu of a sampled token.
-- grain: scalar
-- columns:
--   log_p: nats
--   log_mu: nats
--   (result): exp of the difference, which is clamped at -20 and 20
CREATE MACRO sampled_ratio(log_p, log_mu) AS
    exp(greatest(-20, least(20, log_p::DOUBLE - log_mu::DOUBLE)));
