-- mass_inside(log_tail): probability mass inside a support, from the log mass outside it.
-- grain: scalar
-- columns:
--   log_tail: nats, log mass outside; -inf where nothing is
--   (result): share of 1; -expm1(log_tail), exact also where the mass inside is tiny
CREATE MACRO mass_inside(log_tail) AS
    -tanh(log_tail::DOUBLE / 2) * (exp(log_tail::DOUBLE) + 1);
