"""Where problems come from: for the rounds' prompts and for held-out problems alike."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Positive, Section


class HubSource(Section):
    """A data set by its hub name. `OPD_DATA_DIR` may hold a local copy (README: data)."""

    type: Literal["hub"] = "hub"
    name: str
    """Such as `openai/gsm8k`."""
    subset: str | None = None
    """Of data sets that have several, such as `main` of openai/gsm8k."""
    split: str = "train"
    """Part of the data set: `train`, `test`, ..."""
    revision: str | None = None
    """Commit of the data set; null: its newest."""
    question: str = "question"
    """Column of the question, or of a chat (list of {role, content})."""
    answer: str = "answer"
    """Column of the reference answer, dots for nested ones (`reward_model.ground_truth`); "" for no rewards."""
    solution: str | None = None
    """Column of a written-out solution, if there is one."""
    limit: Positive | None = None
    """Use only the first so many rows."""


class FileSource(Section):
    """A Parquet or JSON-lines file."""

    type: Literal["file"] = "file"
    path: str
    name: str | None = None
    """Name of the data set in the tables; the file's stem if null."""
    question: str = "question"
    answer: str = "answer"
    """Column of the reference answer, dots for nested ones; "" for no rewards."""
    solution: str | None = None
    """Column of a written-out solution, if there is one."""
    limit: Positive | None = None


class GeneratedSource(Section):
    """Problems written by a generator of pipeline/prompts/generated.py, with solutions."""

    type: Literal["generated"] = "generated"
    generator: Literal["arithmetic"] = "arithmetic"
    problems: Positive = 4096
    seed: int = 0
    split: Literal["train", "held_out"] = "train"
    """The two splits share no problem."""


Source = Annotated[HubSource | FileSource | GeneratedSource, Field(discriminator="type")]
