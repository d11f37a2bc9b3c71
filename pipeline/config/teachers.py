"""What reads the rollouts for the teacher: one section per engine, `type` names it."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Section


class ScorerTeacher(Section):
    """Our scorer: every column."""

    type: Literal["scorer"] = "scorer"


class VllmTeacher(Section):
    """vLLM's prompt_logprobs, in a process of its own."""

    type: Literal["vllm"] = "vllm"


class VllmServerTeacher(Section):
    """prompt_logprobs of a vLLM server."""

    type: Literal["vllm_server"] = "vllm_server"


TeacherEngine = Annotated[ScorerTeacher | VllmTeacher | VllmServerTeacher, Field(discriminator="type")]
