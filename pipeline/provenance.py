"""Whether a round's checkpoint, teacher, rollouts and tokens are those that it was planned for: checked before use."""

from typing import Any

import pyarrow as pa

from pipeline.config.model import Model
from pipeline.context import RoundContext
from pipeline.kept import kept
from pipeline.models import config_hash, fingerprint, load_tokenizer, pinned, resolve
from pipeline.models.files import generation_eos
from pipeline.models.vocabulary import template_hash, tokenizer_hash
from pipeline.ragged import Ragged
from pipeline.tokens import token_hash
from storage.checkpoints import weights_fingerprint
from storage.errors import IntegrityError, UserError
from storage.records import CheckpointFiles
from storage.rounds import starting_checkpoint


def planned_checkpoint(context: RoundContext) -> CheckpointFiles:
    """The student that starts the round, agreeing with the plan and with the committed hashes of its own files."""
    start, planned = starting_checkpoint(context.store, context.run, context.number), context.round.plan().checkpoint
    listed = weights_fingerprint({file.key.rsplit("/", 1)[-1]: file.sha256 for file in start.files})
    if not start.fingerprint == listed == planned:
        raise IntegrityError(f"round {context.number} of {context.run} was planned for checkpoint {planned[:12]}, but "
                             f"{start.prefix} is {start.fingerprint[:12]} with files of {listed[:12]}: run "
                             "`opd verify`", "stale")
    return start


def teacher_model(context: RoundContext) -> Model:
    """The run's teacher at the revision that run.json recorded. Raises UserError unless it has the weights and the
    config.json that were recorded with it."""
    facts = context.document["teacher"]
    model = pinned(context.config.teacher, facts)
    _check_teacher(model, facts["fingerprint"], facts["config_hash"])
    return model


def writing_teacher(context: RoundContext) -> tuple[Model, Any]:
    """The same for a teacher that writes, with its tokenizer: checked besides are tokenizer, chat template, and where
    it ends."""
    model, facts = teacher_model(context), context.document["teacher"]
    tokenizer = load_tokenizer(model)
    found = {"tokenizer_hash": tokenizer_hash(tokenizer), "template_hash": template_hash(tokenizer),
             "eos_token_id": tokenizer.eos_token_id,
             "generation_eos_token_id": generation_eos(resolve(model))}
    changed = [name for name, value in found.items() if value != facts[name]]
    if changed:
        raise UserError(f"teacher {model.path} is not the one that this run began with ({changed[0]} differs): restore "
                        "it, or start another run")
    return model, tokenizer


@kept
def _check_teacher(model: Model, weights: str, config: str) -> None:
    """Once per stage: hashing the weights of a large teacher takes a minute."""
    folder = resolve(model)
    for what, found, expected in (("weights", fingerprint(folder), weights),
                                  ("config.json", config_hash(folder), config)):
        if found != expected:
            raise UserError(f"teacher {model.path} is not the one that this run began with ({what} {found[:12]}, "
                            f"expected {expected[:12]}): restore it, or start another run")


def check_tokens(rollouts: pa.Table, where: str) -> None:
    """Raise IntegrityError unless every rollout's tokens have its token_hash."""
    prompts, responses = Ragged.of(rollouts["prompt_tokens"]), Ragged.of(rollouts["response_tokens"])
    for i, expected in enumerate(rollouts["token_hash"].to_pylist()):
        if token_hash(prompts[i], responses[i]) != expected:
            raise IntegrityError(f"{where}: the tokens of rollout {rollouts['rollout_id'][i]} do not have its "
                                 "token_hash; run `opd verify`")


def check_writer(rollouts: pa.Table, policy_version: str, where: str) -> None:
    """Raise IntegrityError unless the checkpoint `policy_version` wrote every rollout."""
    others = set(rollouts["policy_version"].unique().to_pylist()) - {policy_version}
    if others:
        raise IntegrityError(f"{where}: a rollout was written by checkpoint {min(others)[:12]}, not by "
                             f"{policy_version[:12]} which starts this round; run `opd verify`")
