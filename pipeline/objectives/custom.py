"""The user's own objective: a factory in an installed package, or in a .py file of the folder where opd runs.

    # gap_objective.py
    from pipeline.objectives.dense import Dense
    from pipeline.objectives.divergence import reverse_kl
    from pipeline.objectives.outside import tail_bucket
    from pipeline.objectives.support import Union

    def tail_aware_union(k=None):
        return Dense("tail_aware_union", Union(k), reverse_kl, tail_bucket)

    [objective]
    type = "gap_objective.tail_aware_union"       # or type = "custom", factory = "gap_objective:tail_aware_union"
    options = { k = 8 }

What comes back must be an Objective (objective.py). Subclasses of `Reduced` with a field `reduction` get the one that
train.reduction names. Installed modules come before files of the folder.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.config.objectives import Custom
from pipeline.config.objectives import Objective as Section
from pipeline.objectives.objective import Objective
from storage.errors import UserError

ALWAYS = {"name": str, "needs_log_normaliser": bool, "age_cap": int, "whole_vocabulary": bool}
METHODS = ("support", "loss", "factors", "units")
METHODS_OF_WHOLE_VOCABULARY = ("divergence", "factors", "units")


def load(config: Custom) -> Objective:
    """Import the factory, call it with `options`, and check what it returns. Raises UserError, one line."""
    factory = _factory(config.factory)
    try:
        inspect.signature(factory).bind(**config.options)
    except (TypeError, ValueError) as error:  # ValueError: a built-in without a signature
        raise UserError(f"objective.options do not fit {config.factory}: {error}; they are its keyword arguments"
                        ) from None
    objective = factory(**config.options)
    problem = _problem(objective)
    if problem:
        raise UserError(f"objective.factory = {config.factory!r} returned a {type(objective).__name__} that {problem}: "
                        "see pipeline/objectives/objective.py for what an objective is")
    return objective


def source_sha256(config: Section) -> str | None:
    """Hash of the file that holds a custom objective's factory; None for all others.

    Recorded when a run begins, so that an edited objective is refused. It covers that one file, not what it imports.
    Raises UserError if there is no such module or no source.
    """
    if not isinstance(config, Custom):
        return None
    module, _ = _parts(config.factory)
    with _importing(config.factory, module):
        spec = importlib.util.find_spec(module)
    if spec is None:
        raise _no_module(config.factory, module)
    if not spec.origin or not Path(spec.origin).is_file():
        raise UserError(f"objective.factory = {config.factory!r}: module {module} has no source file that a run could "
                        "record; put the factory into a .py file")
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def whole_vocabulary_teacher(config: Section) -> str | None:
    """Where the teacher's whole distribution comes from, "cache" or "live"; None if the cached lists are enough. A
    custom objective is built to ask it."""
    if not isinstance(config, Custom):
        return config.whole_vocabulary_teacher
    objective = load(config)
    return objective.teacher if objective.whole_vocabulary else None


def refuse_edited(config: Section, document: Mapping) -> None:
    """Raise UserError if a custom objective's file is not the one that run.json records."""
    if source_sha256(config) != document.get("objective_source"):
        raise UserError(f"objective {config.factory} changed since the run began: restore the file, or start another "
                        "run or a branch (`opd replay`)")


def _parts(factory: str) -> tuple[str, str]:
    module, _, name = factory.replace(":", ".", 1).rpartition(".")
    return module, name


def _factory(factory: str):
    module, name = _parts(factory)
    with _importing(factory, module):
        found = importlib.import_module(module)
    if not hasattr(found, name):
        defined = [key for key, value in vars(found).items() if getattr(value, "__module__", None) == module]
        raise UserError(f"objective.factory = {factory!r}: module {module} has no {name!r}; it defines "
                        f"{', '.join(sorted(defined)) or 'nothing'}")
    if not callable(getattr(found, name)):
        raise UserError(f"objective.factory = {factory!r} is a {type(getattr(found, name)).__name__}, not a function "
                        "or class: name what makes the objective")
    return getattr(found, name)


@contextlib.contextmanager
def _importing(factory: str, module: str) -> Iterator[None]:
    """With the current folder as the last place to look, which a console script does not do; errors in one line."""
    before = list(sys.path)
    sys.path.append(os.getcwd())
    importlib.invalidate_caches()  # a file that was written after this process first looked
    try:
        yield
    except (ImportError, SyntaxError) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module}.".startswith(f"{missing}."):
            raise _no_module(factory, module) from None
        raise UserError(f"objective.factory = {factory!r}: importing {module} fails with {type(error).__name__}: "
                        f"{' '.join(str(error).split())}; mend the file") from None
    finally:
        sys.path[:] = before


def _no_module(factory: str, module: str) -> UserError:
    from pipeline.objectives.presets import nearest

    return UserError(f"objective.factory = {factory!r}: no module {module!r} among the installed packages or in "
                     f"{os.getcwd()}; check the name, or run opd where the file is{nearest(factory)}")


def _problem(objective) -> str | None:
    """What keeps `objective` from being one, in words; None if nothing does."""
    for name, kind in ALWAYS.items():
        value = getattr(objective, name, None)
        if not isinstance(value, kind) or kind is int and isinstance(value, bool):
            return f"has no {name} of type {kind.__name__}"
    if objective.age_cap < 1:
        return f"has age_cap = {objective.age_cap}, which would never let it train"
    methods = METHODS_OF_WHOLE_VOCABULARY if objective.whole_vocabulary else METHODS
    missing = [name for name in methods if not callable(getattr(objective, name, None))]
    if missing:
        return f"has no {', '.join(missing)}"
    if objective.whole_vocabulary and getattr(objective, "teacher", None) not in ("cache", "live"):
        return "is over the whole vocabulary and has no teacher = 'cache' or 'live'"
    if objective.whole_vocabulary and not isinstance(getattr(objective, "stop_gradient", None), bool):
        return "is over the whole vocabulary and has no stop_gradient"
    return None
