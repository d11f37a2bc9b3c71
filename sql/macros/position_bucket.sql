-- position_bucket(place, width): first position of the bucket that `place` lies in.
-- grain: scalar
-- columns:
--   place: position, from 0
--   width: positions per bucket
--   (result): position, a multiple of width
CREATE MACRO position_bucket(place, width) AS
    (place // width) * width;
