"""Drawing one token per row: temperature, then the nucleus, then the inverse of the cumulative distribution.

    s = z / temperature                              z: logits over the shared vocabulary
    nucleus: the smallest set of ids, largest s first, whose probability reaches top_p; equal s: lower id first
    y = the first id of that order whose cumulative mass exceeds u * mass(nucleus)
    log p(y) = z_y - lse(z)                          raw
    log p_sampling(y) = s_y - lse(s) - log mass(nucleus)

u comes from a counter (streams.py): (seed of the rollout, position) and nothing else decides it, so a rollout draws
the same numbers in any batch. Masses are summed as integers (2^-48 each): no order of summation, on any device, can
move the border of a nucleus, and none of the kernels is one that torch calls nondeterministic.

Shapes: B rows, V vocabulary, M candidates, T positions.
"""

import numpy as np
import torch

ONE = 2 ** 48
"""Probability 1. Rarer tokens than 2^-48 are never drawn under a nucleus."""
CANDIDATES = 128
"""Ids looked at first; rows whose nucleus is not complete among them get eight times as many, and so on."""


def draw(logits_BV: torch.Tensor, uniform_B: torch.Tensor, temperature: float, top_p: float,
         candidates: int = CANDIDATES) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One id per row of float32 logits, its raw log-prob and the log-prob of the density it was drawn from."""
    normaliser_B1 = logits_BV.logsumexp(-1, keepdim=True)
    scaled_BV = logits_BV if temperature == 1 else logits_BV / temperature
    scaled_normaliser_B1 = normaliser_B1 if temperature == 1 else scaled_BV.logsumexp(-1, keepdim=True)
    if top_p < 1:
        ids_B1, log_mass_B1 = _draw_from_nucleus(scaled_BV, scaled_normaliser_B1, uniform_B, top_p, candidates)
    else:
        ids_B1, log_mass_B1 = _invert(_masses(scaled_BV, scaled_normaliser_B1), uniform_B), 0.0
    raw_B1 = logits_BV.gather(1, ids_B1) - normaliser_B1
    sampling_B1 = scaled_BV.gather(1, ids_B1) - scaled_normaliser_B1 - log_mass_B1
    return ids_B1[:, 0], raw_B1[:, 0], sampling_B1[:, 0]


def _draw_from_nucleus(scaled_BV, normaliser_B1, uniform_B, top_p: float, candidates: int):
    ids_BM, masses_BM = _largest(scaled_BV, normaliser_B1, top_p, candidates)
    before_BM = masses_BM.cumsum(1) - masses_BM
    kept_BM = torch.where(before_BM < _needed(top_p), masses_BM, 0)
    chosen_B1 = _invert(kept_BM, uniform_B)
    log_mass_B1 = (kept_BM.sum(1, keepdim=True).double() / ONE).log().float()
    return ids_BM.gather(1, chosen_B1), log_mass_B1


def _largest(scaled_BV, normaliser_B1, top_p: float, candidates: int):
    """Ids in the nucleus's order and their masses: at least the nucleus of every row.

    topk may keep any of several equal values at its end, so the nucleus must be complete above the last value.
    """
    vocabulary = scaled_BV.shape[1]
    while True:
        candidates = min(candidates, vocabulary)
        values_BM, ids_BM = scaled_BV.topk(candidates, dim=1)
        masses_BM = _masses(values_BM, normaliser_B1)
        certain_B = torch.where(values_BM > values_BM[:, -1:], masses_BM, 0).sum(1)
        if candidates == vocabulary or bool((certain_B >= _needed(top_p)).all()):
            return _lower_ids_first(values_BM, ids_BM), masses_BM
        candidates *= 8


def _lower_ids_first(values_BM: torch.Tensor, ids_BM: torch.Tensor) -> torch.Tensor:
    """Order equal values, which topk returns in any order, by id; values are in descending order already."""
    if not bool((values_BM[:, 1:] == values_BM[:, :-1]).any()):
        return ids_BM
    ids_BM, by_id_BM = ids_BM.sort(dim=1)
    by_value_BM = values_BM.gather(1, by_id_BM).sort(dim=1, descending=True, stable=True).indices
    return ids_BM.gather(1, by_value_BM)


def _masses(scaled, normaliser_B1) -> torch.Tensor:
    return ((scaled - normaliser_B1).double().exp() * ONE).long()


def _needed(top_p: float) -> int:
    return max(1, int(np.ceil(top_p * ONE)))


def _invert(masses_BM: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """[B, 1] index of the first entry whose cumulative mass exceeds uniform * total."""
    cumulative_BM = masses_BM.cumsum(1)
    aim_B1 = (uniform_B[:, None] * cumulative_BM[:, -1:]).long()
    return (cumulative_BM <= aim_B1).sum(1, keepdim=True).clamp_(max=masses_BM.shape[1] - 1)
