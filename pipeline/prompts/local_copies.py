"""Where a hub data set lies in the folder that the environment variable OPD_DATA_DIR names.

    openai/gsm8k, split test            -> $OPD_DATA_DIR/gsm8k_test.jsonl
    BytedTsinghua-SIA/DAPO-Math-17k     -> $OPD_DATA_DIR/dapo_math_17k.parquet

The rule: the part of the name after the slash, in lower case, everything but letters and digits as `_`; with
`_<split>` or without; .parquet or .jsonl. A local copy may have another name or other columns than the hub's: NAMES
and COLUMNS say so for the sets in common use, and a config written for the hub works with both.
"""

import os
import re
from pathlib import Path

ENVIRONMENT = "OPD_DATA_DIR"

NAMES = {
    "HuggingFaceH4/MATH-500": "math500",
    "HuggingFaceH4/aime_2024": "aime24",
    "AI-MO/aimo-validation-amc": "amc23",
}
"""Hub name -> name of the file, where the rule gives another one."""

_PROBLEM = {"problem": "prompt", "answer": "reward_model.ground_truth"}
COLUMNS = {"HuggingFaceH4/MATH-500": _PROBLEM, "HuggingFaceH4/aime_2024": _PROBLEM,
           "AI-MO/aimo-validation-amc": _PROBLEM}
"""Hub name -> {the hub's column: the local copy's}, for copies in the chat form of DAPO-Math-17k."""


def data_folder() -> Path | None:
    """The folder of local copies, None if OPD_DATA_DIR is not set."""
    folder = os.environ.get(ENVIRONMENT)
    return Path(folder).expanduser() if folder else None


def local_copy(name: str, split: str) -> Path | None:
    """The file of a hub data set in OPD_DATA_DIR, None if it is not there."""
    folder = data_folder()
    found = [folder / file for file in file_names(name, split) if (folder / file).is_file()] if folder else []
    return found[0] if found else None


def file_names(name: str, split: str) -> list[str]:
    """File names that would do, in the order in which they are looked for."""
    stem = NAMES.get(name) or _clean(name.rpartition("/")[2])
    return [each + suffix for each in (f"{stem}_{_clean(split)}", stem) for suffix in (".parquet", ".jsonl")]


def _clean(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
