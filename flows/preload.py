"""What the fork server imports before it forks the first child: everything that a stage would spend its time on.

Imported by that process alone. Nothing here may touch a device or start a thread. Measured per child, of which a round
has seven: `import transformers` and its parts 4 s, pandas 0.15 s (pyarrow imports it at the first conversion), duckdb
0.04 s, the table by which transformers renames weights 0.09 s.
"""

import contextlib
import importlib

STAGES = ("prompts", "rollout", "score", "mask", "train", "evaluate", "continuation", "hidden")
MODULES = (
    "flows.jobs", *(f"pipeline.{stage}.stage" for stage in STAGES), "pyarrow.parquet", "pyarrow.compute", "pandas",
    "duckdb", "storage.catalog", "torch._dynamo", "transformers.generation.utils", "transformers.modeling_layers",
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
    with contextlib.suppress(ImportError, AttributeError):  # a private table of transformers 5.17
        importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("qwen2")


load()
