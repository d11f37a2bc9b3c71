"""What writes rollouts: one section per engine, `type` names it."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Positive, Section


class TransformersEngine(Section):
    """Models and KV caches of transformers, decoded in batches that shrink as rollouts end."""

    type: Literal["transformers"] = "transformers"
    batch_size: Positive = 64
    """Rollouts decoded together."""


class VllmEngine(Section):
    """vLLM in a process of its own, which is kept from round to round and given the new weights."""

    type: Literal["vllm"] = "vllm"


class VllmServer(Section):
    """A vLLM server that somebody else runs and reloads, asked through its OpenAI-compatible API."""

    type: Literal["vllm_server"] = "vllm_server"


Engine = Annotated[TransformersEngine | VllmEngine | VllmServer, Field(discriminator="type")]
