"""vLLM writes the rollouts of the quickstart: reloaded between rounds, proved in each, and the same as transformers.

    python -m benchmarks.vllm_rollouts [--rounds 3] [--pair opd-models] [--prompts 64]      (two minutes)

Plays rounds of the quickstart as `opd run` does, with rollout.engine.type = "vllm". Of each round the stored proof: the
mean difference between the engine's log-probs of its own first rollouts and those of the round's checkpoint in
transformers, and from the second round on how far the reload moved the engine's log-probs of one set of tokens. One
that still had the old weights would differ by as much as they moved. Only an engine that was kept has moved: one that
was started anew has nothing to compare with.

Greedy: both models of the pair answer the first round's prompts in vLLM and in transformers, float32. Without the pair
(`make quickstart` makes it) or without vLLM nothing is measured.
"""

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import Target, finish
from benchmarks.rounds import quiet
from benchmarks.stages import quickstart
from flows import local
from pipeline.config import RunConfig
from pipeline.config.engines import VllmEngine
from pipeline.models import load_model, model_facts
from pipeline.rollout import engine as engines
from pipeline.rollout.engine import Sampling, stop_ids
from pipeline.rollout.transformers_engine import TransformersEngine
from storage.objects import open_store
from storage.rounds import Round, read_run

ENGINE = VllmEngine(cpu_kv_cache_gb=0.5, max_num_seqs=128)
GREEDY = 1e-9
"""A nucleus of one token."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vllm_rollouts", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pair", type=Path, default=Path("opd-models"),
                        help="folder with quickstart-student and quickstart-teacher (default: ./opd-models)")
    parser.add_argument("--prompts", type=int, default=64)
    asked = parser.parse_args()
    if importlib.util.find_spec("vllm") is None or not asked.pair.is_dir():
        print("vLLM is not installed, or the quickstart's pair is not here: `make quickstart` makes it")
        return finish("vllm_rollouts", {}, targets([], {}))
    with tempfile.TemporaryDirectory(prefix="opd-vllm-") as folder:
        config = played(Path(folder), asked)
        rounds = [proof_of(config, number) for number in range(asked.rounds)]
        for number, each in enumerate(rounds):
            print(f"round {number}", *(f"{name} {value:.3g}" for name, value in each.items()), sep="   ", flush=True)
        greedy = {side: greedy_of(config, side, asked.prompts) for side in ("student", "teacher")}
    print("greedy", greedy)
    return finish("vllm_rollouts", {"rounds": rounds, "greedy": greedy}, targets(rounds, greedy))


def targets(rounds: list[dict], greedy: dict) -> list[Target]:
    later = rounds[1:]
    return [
        Target("share of greedy rollouts that are those of transformers, token for token",
               min((each["equal"] / each["rollouts"] for each in greedy.values()), default=None), 1.0),
        Target("share of later rounds whose engine was kept and reloaded",
               float(np.mean(["moved" in each for each in later])) if later else None, 1.0),
        Target("how far a reload moved log-probs over the proof's difference",
               min((each.get("moved", 0.0) / max(before["log_prob_difference"], each["log_prob_difference"])
                    for before, each in zip(rounds, later)), default=None), 10.0),
        Target("train_rollout_logprob_abs_diff, nats",
               max((each["train_rollout_logprob_abs_diff"] for each in rounds), default=None), 1e-4, at_most=True),
    ]


def played(folder: Path, asked) -> RunConfig:
    """The quickstart's rounds, written by vLLM."""
    document = quickstart(folder, asked.pair).model_dump(mode="json")
    document["rollout"]["engine"] = ENGINE.model_dump(mode="json")
    config = RunConfig.model_validate(document | {"rounds": asked.rounds})
    local.distill(config, quiet)
    return config


def proof_of(config: RunConfig, number: int) -> dict:
    """What a round's timings and scores say of its engine."""
    round = Round(open_store(config.store), config.run, number)
    proof = next(each["engine_proof"] for each in round.timings() if each["stage"] == "rollout")
    scores = round.read("score", columns=["student_log_prob", "rollout_log_prob"])
    difference = scores["student_log_prob"].to_numpy() - scores["rollout_log_prob"].to_numpy()
    return {**{name: proof[name] for name in ("rollouts", "log_prob_difference", "moved") if name in proof},
            "tokens": len(difference), "train_rollout_logprob_abs_diff": float(np.abs(difference).mean())}


def greedy_of(config: RunConfig, side: str, count: int) -> dict:
    """How many greedy answers of one of the models are equal in both engines."""
    model = getattr(config, side)
    folder, store = Path(model.path), open_store(config.store)
    vocabulary = read_run(store, config.run)["vocabulary"]["shared"]
    written = Round(store, config.run, 0).read("rollout")["prompt_tokens"].to_pylist()
    prompts = [np.array(each, np.int32) for each in dict.fromkeys(map(tuple, written))][:count]
    stops = stop_ids(model_facts(model), vocabulary)
    sampling = Sampling(1.0, GREEDY, config.rollout.max_new_tokens, vocabulary, stops)
    seeds = range(len(prompts))
    ours = TransformersEngine(load_model(model), len(prompts)).generate(prompts, seeds, sampling)
    theirs = engines.open_engine(ENGINE, model, folder).generate(prompts, seeds, sampling)
    engines.close()
    equal = sum(np.array_equal(ours.tokens(i), theirs.tokens(i)) for i in seeds)
    return {"rollouts": len(prompts), "equal": equal, "tokens": len(ours.token_ids)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
