"""Rollouts by transformers: prompts padded on the left, one cache, one token per row and step.

An own loop instead of `generate`: every row draws from its own counter (sampling.py), log-probs are kept of what was
drawn and not of whole rows, n samples share one pass over their prompt, and rows that have ended leave the batch.
Which rows share a batch is decided by the prompts alone, so the same shard decodes to the same bits.

Shapes: U distinct prompts, B rows, V vocabulary, L positions of the prompts, T new tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch
import transformers

from pipeline.rollout.cache import growing_cache
from pipeline.rollout.engine import Generations, OnFinished, Sampling, checked
from pipeline.rollout.sampling import draw
from pipeline.streams import uniforms

KEPT_SHARE = 0.9
"""The batch is cut to its unfinished rows once they are fewer than this share of it: a cut copies the cache."""


class TransformersEngine:
    """Decodes up to `batch_size` rollouts together."""

    def __init__(self, model, batch_size: int):
        self.model, self.batch_size = model, batch_size
        self.name_and_version = f"transformers {transformers.__version__}, torch {torch.__version__}"

    def generate(self, prompts: Sequence[np.ndarray], seeds: Sequence[int], sampling: Sampling,
                 on_finished: OnFinished | None = None) -> Generations:
        """See RolloutEngine."""
        prompts, seeds = [np.asarray(prompt, np.int32) for prompt in prompts], np.asarray(seeds, np.int64)
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), prompts[i].tobytes(), i))
        rows: list[_Row | None] = [None] * len(prompts)
        done = 0

        def count(finished: int) -> None:
            if on_finished is not None:
                on_finished(done + finished, len(prompts))

        for start in range(0, len(order), self.batch_size):
            batch = order[start:start + self.batch_size]
            decoded = _Decoding(self.model, [prompts[i] for i in batch], seeds[batch], sampling).run(count)
            for i, row in zip(batch, decoded):
                rows[i] = row
            done += len(batch)
        return _joined(rows)


_Row = tuple[np.ndarray, np.ndarray, np.ndarray, str]
"""Token ids, raw and sampling log-probs, finish reason of one rollout."""


class _Decoding:
    """One batch, from its prompts to its last token."""

    def __init__(self, model, prompts: list[np.ndarray], seeds: np.ndarray, sampling: Sampling):
        self.model, self.sampling, self.device = model, sampling, model.device
        self.cache = growing_cache(model.config)
        self.distinct, owners = _distinct(prompts)
        self.owners_B = torch.tensor(owners, device=self.device)
        self.uniforms_BT = torch.from_numpy(uniforms(seeds, sampling.max_new_tokens)).to(self.device)
        self.stops = torch.tensor(sampling.stop_ids, dtype=torch.long, device=self.device)
        shape = (len(prompts), sampling.max_new_tokens)
        self.tokens_BT = torch.zeros(shape, dtype=torch.int32, device=self.device)
        self.log_probs_BT, self.sampling_log_probs_BT = (torch.zeros(shape, device=self.device) for _ in range(2))
        self.lengths = np.full(len(prompts), sampling.max_new_tokens)
        self.stopped = np.zeros(len(prompts), bool)

    @torch.inference_mode()
    def run(self, count) -> list[_Row]:
        """Decode; `count` is told how many rows have ended."""
        logits_BV = self._prefill()[self.owners_B]
        self._keep(self.owners_B)
        self.rows_B = torch.arange(len(self.lengths), device=self.device)
        rows = np.arange(len(self.lengths))  # what rows_B is on the host: which rows are still in the batch
        for t in range(self.sampling.max_new_tokens):
            ids_B = self._draw(logits_BV, t)
            ended = torch.isin(ids_B, self.stops).cpu().numpy() & ~self.stopped[rows]
            if ended.any():
                self.stopped[rows[ended]], self.lengths[rows[ended]] = True, t + 1
            if ended.any() or t % 16 == 0:
                count(int(self.stopped.sum()))
            alive = np.flatnonzero(~self.stopped[rows])
            if len(alive) == 0 or t + 1 == self.sampling.max_new_tokens:
                break
            if len(alive) < KEPT_SHARE * len(rows):
                kept_B = torch.from_numpy(alive).to(self.device)
                rows, self.rows_B, ids_B = rows[alive], self.rows_B[kept_B], ids_B[kept_B]
                self._keep(kept_B)
            logits_BV = self._step(ids_B)
        count(len(self.lengths))
        return self._rows()

    def _prefill(self) -> torch.Tensor:
        """Run the distinct prompts; logits after each one's last token."""
        lengths = [len(prompt) for prompt in self.distinct]
        longest, room = max(lengths), self.sampling.max_new_tokens
        ids_UL = torch.zeros(len(lengths), longest, dtype=torch.long)
        self.mask = torch.ones(len(lengths), longest + room, dtype=torch.long)
        for row, prompt in enumerate(self.distinct):
            ids_UL[row, longest - len(prompt):] = torch.from_numpy(prompt)
            self.mask[row, :longest - len(prompt)] = 0
        self.padded, self.length = min(lengths) < longest, longest
        self.mask = self.mask.to(self.device)
        self.positions = (self.mask.cumsum(1) - 1).clamp_(min=0)
        return self._forward(ids_UL.to(self.device), slice(0, longest))

    def _step(self, ids_B: torch.Tensor) -> torch.Tensor:
        self.length += 1
        return self._forward(ids_B[:, None], slice(self.length - 1, self.length))

    def _forward(self, ids: torch.Tensor, span: slice) -> torch.Tensor:
        """Logits at the last of the new positions, over the shared vocabulary."""
        mask = self.mask[:, :span.stop] if self.padded else None
        output = self.model(input_ids=ids, attention_mask=mask, position_ids=self.positions[:, span],
                            past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1, :self.sampling.vocabulary].float()

    def _keep(self, rows_B: torch.Tensor) -> None:
        self.cache.reorder_cache(rows_B)
        self.mask, self.positions = self.mask[rows_B], self.positions[rows_B]

    def _draw(self, logits_BV: torch.Tensor, t: int) -> torch.Tensor:
        """Draw position t and keep it; what a row gets after its end is cut off in `_rows`."""
        ids_B, raw_B, sampling_B = draw(logits_BV, self.uniforms_BT[self.rows_B, t], self.sampling.temperature,
                                        self.sampling.top_p)
        self.tokens_BT[self.rows_B, t] = ids_B.int()
        self.log_probs_BT[self.rows_B, t] = raw_B
        self.sampling_log_probs_BT[self.rows_B, t] = sampling_B
        return ids_B

    def _rows(self) -> list[_Row]:
        tokens, raw, sampling = (each.cpu().numpy() for each in (
            self.tokens_BT, self.log_probs_BT, self.sampling_log_probs_BT))
        reasons = np.where(self.stopped, "stop", "length")
        return [(tokens[row, :n], raw[row, :n], sampling[row, :n], str(reasons[row]))
                for row, n in enumerate(self.lengths)]


def _distinct(prompts: list[np.ndarray]) -> tuple[list[np.ndarray], list[int]]:
    """The prompts without repetitions, and for each prompt where it is among them."""
    places: dict[bytes, int] = {}
    owners = [places.setdefault(prompt.tobytes(), len(places)) for prompt in prompts]
    return [np.frombuffer(key, np.int32).copy() for key in places], owners


def _joined(rows: list[_Row]) -> Generations:
    tokens, raw, sampling, reasons = zip(*rows)
    return checked(Generations(np.cumsum([0, *map(len, tokens)], dtype=np.int64), np.concatenate(tokens),
                               np.concatenate(raw), np.concatenate(sampling), reasons))
