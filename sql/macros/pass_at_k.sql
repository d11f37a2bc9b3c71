-- pass_at_k(samples, correct, k): chance that k of a problem's answers hold a right one. Drawn without replacement: 1 -
-- C(samples - correct, k) / C(samples, k), as a product (Chen et al. 2021, arXiv 2107.03374, equation 1).
-- grain: scalar
-- columns:
--   samples: count of answers, at least k
--   correct: count of the right ones
--   k: count drawn
--   (result): share of 1; null for k > samples
CREATE MACRO pass_at_k(samples, correct, k) AS
    CASE WHEN k <= samples THEN 1 - coalesce(list_aggregate(list_transform(
        range(samples - correct + 1, samples + 1), lambda i: greatest(0, 1 - k / i)), 'product'), 1) END;
