"""Continuations: how far the student's own prefixes can be led on, by itself and by the teacher."""

from typing import Annotated

from pydantic import Field, field_validator

from pipeline.config.section import Count, Positive, Section, Share


class Continuation(Section):
    """Student and teacher go on from the student's rollouts, cut at chosen depths (Rethinking OPD; Many Faces)."""

    depths: Annotated[list[Count], Field(min_length=1)] = [0, 32, 128, 256]
    """Response tokens that are kept, ascending and below rollout.max_new_tokens; a rollout is cut at those that it is
    longer than. 0: the prompt alone."""
    prompts: Positive = 16
    """Prompts of the round whose rollouts are continued: the first of the plan; all, if it has fewer."""
    rollouts: Positive = 1
    """Rollouts of each of these prompts: the first; all, if there are fewer."""
    samples: Positive = 1
    """Continuations per rollout, depth and model."""
    every: Positive = 1
    """Rounds between continuations."""
    temperature: Annotated[float, Field(ge=1e-3, strict=False)] | None = None
    """Null: as [rollout]."""
    top_p: Share | None = None
    """Null: as [rollout]."""
    max_new_tokens: Positive | None = None
    """Of the continuation alone; null: what [rollout] leaves after the prefix."""

    @field_validator("depths")
    @classmethod
    def _ascending(cls, depths: list[int]) -> list[int]:
        if any(depth >= other for depth, other in zip(depths, depths[1:])):
            raise ValueError(f"continuation.depths = {depths}: name each depth once, the smallest first")
        return depths
