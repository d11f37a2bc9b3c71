"""The grid on which log-probs of top-K lists lie: multiples of 1/grid nat, so that they compress.

    snap(x) = round(x * grid) / grid        (ties to even, as IEEE 754 rounds)

Half a step is the largest error: 1/64 nat at grid 32. Order is preserved (never reversed), snapping twice changes
nothing, and -inf and +inf stay. NaN stays NaN: it is a teacher's defect, and the gate that stops the round has to
find it in the data. -0.0 becomes 0.0, so that equal values are equal bytes.
"""


def snap(log_probs, grid: int):
    """Return `log_probs` (numpy array or torch tensor, floating) on multiples of 1/`grid`; the dtype stays.

    `grid` is a power of two up to 1024, so that multiplying and dividing by it is exact.
    """
    if not 1 <= grid <= 1024 or grid & (grid - 1):
        raise ValueError(f"grid is {grid}, expected a power of two from 1 to 1024")
    return (log_probs * grid).round() / grid + 0.0
