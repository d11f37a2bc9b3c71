"""Sections of the config where pydantic is not installed: the same names and defaults, no checks.

A GPU host often has torch, transformers and pyarrow and nothing else. What computes a round takes its settings as
objects with attributes, so plain ones do. Import this before anything of `pipeline`; with pydantic at hand it does
nothing.
"""

import importlib.util
import sys
from types import ModuleType
from typing import Any, get_origin


class _Field:
    def __init__(self, default: Any = ..., default_factory=None, **rules):
        self.default, self.default_factory = default, default_factory

    def value(self) -> Any:
        return self.default_factory() if self.default_factory else self.default


class _Section:
    """A model whose fields are its annotations, set by keyword or by the class's default, unchecked."""

    def __init__(self, **given):
        for name, default in type(self)._defaults().items():
            value = given.pop(name, default)
            vars(self)[name] = value.value() if isinstance(value, _Field) else value
        if given:
            raise TypeError(f"{type(self).__name__} has no {', '.join(given)}")

    def __init_subclass__(cls, **options):
        cls.model_fields = {name: value if isinstance(value, _Field) else _Field(value)
                            for name, value in cls._defaults().items()}

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        return {name: getattr(cls, name, ...) for base in reversed(cls.__mro__)
                for name in vars(base).get("__annotations__", {}) if name != "model_config"}

    def __eq__(self, other) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)


class _Stand(ModuleType):
    """pydantic's names: what decorates leaves functions as they are, everything else is never called here."""

    BaseModel, Field, ConfigDict, ValidationError = _Section, _Field, dict, type("ValidationError", (ValueError,), {})

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _leave


def _leave(*arguments, **options):
    if len(arguments) == 1 and callable(arguments[0]) and get_origin(arguments[0]) is None and not options:
        return arguments[0]
    return lambda decorated: decorated


def provide() -> bool:
    """Put the stand-in where `import pydantic` finds it; False if the real one is there."""
    if "pydantic" in sys.modules or importlib.util.find_spec("pydantic") is not None:
        return False
    sys.modules["pydantic"] = _Stand("pydantic")
    return True
