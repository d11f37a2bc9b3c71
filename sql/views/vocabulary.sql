-- vocabulary: the student's tokens as text. Read from the run's first checkpoint when asked for.
-- grain: run, token_id
-- columns:
--   run: run id
--   token_id: id
--   token_text: decoded; bytes that are no UTF-8 as \xNN
CREATE VIEW vocabulary AS
SELECT * FROM raw.vocabulary;
