-- repeat_ratio(ids): share of a response's 3-grams that occurred before in it.
-- grain: scalar; .08 s per million tokens
-- columns:
--   ids: token ids of the response
--   (result): share of 1: 1 - distinct 3-grams / 3-grams; null below three tokens
CREATE MACRO repeat_ratio(ids) AS
    CASE WHEN len(ids) > 2 THEN 1 - list_unique(list_zip(ids[:-3], ids[2:-2], ids[3:])) / (len(ids) - 2) END;
