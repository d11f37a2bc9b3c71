"""What every section of the config is made of: strictness, and the kinds of numbers."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


def _selectable(schema: dict) -> None:
    """Let a form offer the members of a union: Prefect's does for `anyOf`, and shows a box of JSON for `oneOf`."""
    for part in schema.get("properties", {}).values():
        for union in (part, part.get("items", {}), *part.get("anyOf", ())):
            if "oneOf" in union:
                union["anyOf"] = union.pop("oneOf")
                del union["discriminator"]


class Section(BaseModel):
    """A part of the config: no unknown keys, no change after reading, no coercion of strings to numbers, no inf or nan.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False,
                              use_attribute_docstrings=True, json_schema_extra=_selectable)


Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, strict=False)]
Share = Annotated[float, Field(gt=0, le=1, strict=False)]
Dtype = Literal["float32", "bfloat16"]
Decay = Annotated[float, Field(ge=0, lt=1, strict=False)]
