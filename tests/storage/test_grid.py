import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.grid import snap

GRIDS = st.sampled_from([1, 16, 32, 1024])
LOG_PROBS = st.lists(st.floats(-1e4, 0, width=32), max_size=50).map(lambda values: np.array(values, np.float32))
ANY_FLOAT = st.floats(-2.0**99, 2.0**99, width=32) | st.sampled_from([-np.inf, np.inf, np.nan])
ANY_FLOATS = st.lists(ANY_FLOAT, max_size=50).map(lambda values: np.array(values, np.float32))


@settings(deadline=None)
@given(LOG_PROBS, GRIDS)
def test_no_log_prob_moves_by_more_than_half_a_step(log_probs, grid):
    assert np.all(np.abs(snap(log_probs, grid).astype(float) - log_probs.astype(float)) <= 0.5 / grid)


@settings(deadline=None)
@given(LOG_PROBS, GRIDS)
def test_snapped_values_are_whole_multiples_of_the_step(log_probs, grid):
    steps = snap(log_probs, grid).astype(float) * grid
    assert np.array_equal(steps, np.round(steps))


@settings(deadline=None)
@given(ANY_FLOATS, GRIDS)
def test_snapping_twice_changes_nothing(values, grid):
    once = snap(values, grid)
    assert snap(once, grid).tobytes() == once.tobytes()


@settings(deadline=None)
@given(LOG_PROBS, GRIDS)
def test_a_descending_list_stays_descending(log_probs, grid):
    snapped = snap(np.sort(log_probs)[::-1], grid)
    assert np.all(snapped[1:] <= snapped[:-1])


@settings(deadline=None)
@given(ANY_FLOATS, GRIDS)
def test_torch_and_numpy_snap_to_the_same_bits(values, grid):
    tensor = snap(torch.from_numpy(values.copy()), grid)
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.numpy().view(np.int32)[~np.isnan(values)],
                                  snap(values, grid).view(np.int32)[~np.isnan(values)])
    assert np.array_equal(torch.isnan(tensor).numpy(), np.isnan(values))


def test_nan_stays_nan_and_infinities_stay_so_that_a_gate_finds_them():
    snapped = snap(np.array([np.nan, -np.inf, np.inf, -1.01], np.float32), 32)
    np.testing.assert_array_equal(snapped, np.array([np.nan, -np.inf, np.inf, -1.0], np.float32))


def test_a_log_prob_close_to_zero_becomes_positive_zero():
    assert not np.signbit(snap(np.array([-1e-6, -0.0], np.float32), 32)).any()
    assert not torch.signbit(snap(torch.tensor([-1e-6, -0.0]), 32)).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_and_the_argument_stay_as_they_were(dtype):
    log_probs = torch.tensor([[-0.3, -2.2]], dtype=dtype)
    before = log_probs.clone()
    assert snap(log_probs, 32).dtype == dtype
    assert torch.equal(log_probs, before)


@pytest.mark.parametrize("grid", [0, -32, 3, 100, 2048])
def test_a_grid_that_is_no_power_of_two_is_refused(grid):
    with pytest.raises(ValueError, match="power of two"):
        snap(np.zeros(1, np.float32), grid)
