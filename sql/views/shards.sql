-- shards: the files that count, as receipts and manifests name them.
-- grain: key, for each run and round that uses it
-- columns:
--   run: run id
--   round: round, from 0
--   stage: prompts | rollout | score | hidden | continuation | mask | train | evaluate
--   shard: index in the stage, from 0
--   table_name: name of its columns in storage/schemas.py
--   key: path in the store
--   rows: count
--   size_bytes: bytes
--   sha256: of the file
--   committed: whether the round has a manifest
CREATE VIEW shards AS
SELECT * FROM raw.shards;
