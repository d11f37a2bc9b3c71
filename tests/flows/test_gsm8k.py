"""The GSM8K example on the public problems, with tiny models in place of the quickstart's."""

import json
import os
from pathlib import Path

import pytest

from flows.cli import main
from tests.flows.dense_audit import audit
from tests.tiny import byte_tokenizer, save_model

EXAMPLE = Path(__file__).parents[2] / "examples/gsm8k.toml"
SETTINGS = ["prompts.max_prompt_tokens=1200", "rollout.max_new_tokens=24", "threads=1"]
"""A tokenizer without merges takes three times the tokens; random models never end their answers."""


@pytest.mark.skipif(not os.environ.get("OPD_DATA_DIR"), reason="needs GSM8K in OPD_DATA_DIR")
def test_the_example_runs_and_200_tokens_of_every_round_agree_with_a_dense_computation(tmp_path, capsys):
    store = tmp_path / "store"
    models = {name: save_model(tmp_path / name, byte_tokenizer(), seed=seed, tied=False)
              for seed, name in enumerate(("student", "teacher"))}
    settings = [*SETTINGS, f"store={store}", *(f"{name}.path={path}" for name, path in models.items())]
    assert main(["run", str(EXAMPLE), *(part for each in settings for part in ("--set", each))]) == 0
    for number in (0, 1):
        found = audit(store, "gsm8k", number)
        assert found.scalars < 1e-4 and found.lists <= 0.5 / 32 + 1e-4
        assert found.wrong_ids == found.wrong_ranks == 0
        assert number == 0 or found.before > 0.01
    capsys.readouterr()
    main(["sql", "SELECT round, prompts, rollouts FROM rounds ORDER BY round", "--store", str(store), "--json"])
    assert json.loads(capsys.readouterr().out) == [{"round": n, "prompts": 64, "rollouts": 128} for n in (0, 1)]
