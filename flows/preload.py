"""What the fork server imports before it forks the first child: everything that a stage would spend its time on.

Imported by that process alone. Nothing here may touch a device or start a thread. Measured per child, of which a round
on a GPU has six: `import transformers` and its parts 4 s, pandas 0.15 s (pyarrow imports it at the first conversion),
duckdb and fsspec 0.04 s each, the table by which transformers renames weights 0.09 s, the versions installed 0.01 s.
"""

import atexit
import contextlib
import gc
import importlib

from pipeline.versions import versions

STAGES = ("prompts", "rollout", "score", "mask", "train", "evaluate", "continuation", "hidden")
MODULES = (
    "flows.jobs", *(f"pipeline.{stage}.stage" for stage in STAGES), "pipeline.rollout.transformers_engine",
    "pyarrow.parquet", "pyarrow.compute", "pyarrow.pandas_compat", "pandas", "duckdb", "sql", "storage.catalog",
    "storage.storefiles", "torch._dynamo", "transformers.generation.utils", "transformers.modeling_layers",
    "transformers.modeling_utils", "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto", "transformers.models.qwen2.modeling_qwen2",
    "transformers.processing_utils",
)
"""`import transformers` alone is lazy: without its parts every child would spend 4 s on them (with: 0.1 s)."""


def load() -> None:
    """Import what is installed of MODULES, and compute what every child would compute again."""
    for module in MODULES:
        with contextlib.suppress(ImportError):  # duckdb and pandas are optional
            importlib.import_module(module)
    versions()
    with contextlib.suppress(ImportError, AttributeError):  # a private table of transformers 5.17
        importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("qwen2")


def freeze() -> None:
    """Keep the garbage collector of every child from what was imported here: going through it once takes 0.3 s, and
    copies the pages that all of them share."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # duckdb's binding counts what is left when the fork server ends


load()
freeze()
