"""The evaluation key: answers with one key are the same answers, whichever run asked for them."""

from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from pipeline.config import RunConfig
from pipeline.config.evaluation import Benchmark
from pipeline.context import RoundContext
from pipeline.evaluate.grade import Graded, sampling
from pipeline.models import config_hash, device
from pipeline.models.vocabulary import template_hash, tokenizer_hash
from pipeline.versions import public
from pipeline.vllm.checks import installed
from storage import documents
from storage.errors import UserError
from storage.rounds import EvaluationShard

FORMAT = 1
"""Raise it when the answers or verdicts change otherwise than by what the key holds."""


def evaluation_key(context: RoundContext, shard: EvaluationShard, benchmark: Benchmark, graded: Graded) -> str:
    """sha256 over the model's own files, the problems, how it answers them, and what computes and grades."""
    config, document, settings = context.config, context.document, context.config.evaluation
    return documents.sha256(documents.dump({
        "format": FORMAT,
        "model": {"weights": graded.fingerprint, "config": config_hash(graded.folder),
                  "tokenizer": tokenizer_hash(graded.tokenizer), "template": template_hash(graded.tokenizer),
                  "dtype": graded.settings.dtype, "attention": graded.settings.attention},
        "role": shard.role, "benchmark": shard.benchmark, "prompt_ids": shard.prompt_ids,
        "samples": benchmark.samples, "seed": settings.seed, "timeout_s": settings.timeout_s,
        "sampling": asdict(sampling(config, graded)),
        "engine": config.rollout.engine.model_dump(mode="json") | _engine_version(config),
        "threads": config.threads, "device": device().type,
        "versions": {name: public(document["versions"][name]) for name in ("torch", "transformers", "tokenizers")},
        "checker": _checker_version()}))


def _engine_version(config: RunConfig) -> dict[str, str | None]:
    return {"vllm": installed()} if config.rollout.engine.type == "vllm" else {}


def _checker_version() -> str:
    try:
        return version("math-verify")
    except PackageNotFoundError:
        raise UserError("evaluation needs math-verify, which is not installed here: pip install math-verify") from None
