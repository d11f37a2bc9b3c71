"""Chunks on their way to the host: in order, none lost, the next one computed before the last one is read."""

import numpy as np
import torch

from pipeline.score.host import to_device, to_host


def test_chunks_come_in_order_and_the_next_ones_are_computed_before_one_is_read():
    computed, read = [], []

    def chunks():
        for place in range(6):
            computed.append(place)
            yield place, {"twice": torch.tensor([2 * place])}

    for place, statistics in to_host(chunks()):
        read.append((place, int(statistics["twice"][0]), len(computed)))
    assert [(place, value) for place, value, _ in read] == [(place, 2 * place) for place in range(6)]
    assert [ahead for _, _, ahead in read] == [3, 4, 5, 6, 6, 6], "one is copied, one computed"


def test_no_chunks_are_no_chunks():
    assert list(to_host([])) == []


def test_on_a_cpu_nothing_is_copied():
    array = np.arange(4)
    to_device(array, torch.device("cpu"))[0] = 7
    (_, statistics), = to_host([(0, {"same": torch.from_numpy(array)})])
    assert array[0] == 7 and np.shares_memory(statistics["same"], array)
