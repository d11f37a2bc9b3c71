"""Prompts and samples as segments of one flat sequence of tokens: who stands where and who sees whom.

Shapes: S segments, T tokens in all.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.ragged import ranges, starts_of


@dataclass(frozen=True)
class Segments:
    """Prompts and samples in a flat sequence. A prompt stands before its samples and names itself as its prompt."""

    length_S: np.ndarray
    prompt_S: np.ndarray

    @cached_property
    def start_S(self) -> np.ndarray:
        return starts_of(self.length_S)

    @cached_property
    def before_S(self) -> np.ndarray:
        """Tokens of the prompt that a segment continues."""
        return np.where(self.prompt_S == np.arange(len(self.prompt_S)), 0, self.length_S[self.prompt_S])

    def positions(self) -> np.ndarray:
        return ranges(self.before_S, self.length_S)

    def keys(self) -> np.ndarray:
        """The tokens that each segment sees, one segment after the other: its prompt and its own."""
        starts = np.stack([self.start_S[self.prompt_S], self.start_S], axis=1).reshape(-1)
        return ranges(starts, np.stack([self.before_S, self.length_S], axis=1).reshape(-1))

    def leaves(self) -> np.ndarray:
        """Samples, and prompts without any: with their prompts they are all sequences there are."""
        is_prompt_S = self.before_S == 0
        return np.flatnonzero(~is_prompt_S | ~np.isin(np.arange(len(self.length_S)), self.prompt_S[~is_prompt_S]))
