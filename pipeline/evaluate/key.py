"""The evaluation key: answers with one key are the same answers, whichever run asked for them."""

from importlib.metadata import PackageNotFoundError, version

from pipeline.config.evaluation import Benchmark
from pipeline.context import RoundContext
from pipeline.evaluate.grade import Graded
from pipeline.versions import public
from storage import documents
from storage.errors import UserError
from storage.rounds import EvaluationShard

FORMAT = 1
"""Raise it when the answers or verdicts change otherwise than by what the key holds."""


def evaluation_key(context: RoundContext, shard: EvaluationShard, benchmark: Benchmark, graded: Graded) -> str:
    """sha256 over the model, the problems, how it answers them, and what computes and grades."""
    config, document = context.config, context.document
    facts = document["teacher" if shard.role == "teacher" else "student"]
    settings = config.evaluation
    return documents.sha256(documents.dump({
        "format": FORMAT,
        "model": {"weights": graded.fingerprint, "dtype": graded.settings.dtype, "attention": graded.settings.attention,
                  **{name: facts[name] for name in ("config_hash", "tokenizer_hash", "template_hash")}},
        "role": shard.role, "benchmark": shard.benchmark, "prompt_ids": shard.prompt_ids,
        "samples": benchmark.samples, "seed": settings.seed, "timeout_s": settings.timeout_s,
        "sampling": {name: getattr(settings, name) or getattr(config.rollout, name)
                     for name in ("temperature", "top_p", "max_new_tokens")},
        "engine": config.rollout.engine.model_dump(mode="json"), "threads": config.threads,
        "versions": {name: public(document["versions"][name]) for name in ("torch", "transformers", "tokenizers")},
        "checker": _checker_version()}))


def _checker_version() -> str:
    try:
        return version("math-verify")
    except PackageNotFoundError:
        raise UserError("evaluation needs math-verify, which is not installed here: pip install math-verify") from None
