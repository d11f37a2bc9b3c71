"""What run.json records about a model, so that months later it is known which one it was."""

from typing import Any

from pipeline.config.model import Model
from pipeline.models.files import HUB_NAME, config_hash, fingerprint, generation_eos, resolve
from pipeline.models.loading import load_tokenizer
from pipeline.models.vocabulary import template_hash, tokenizer_hash
from storage.weights import read_json


def model_facts(model: Model, weights: str | None = None) -> dict[str, Any]:
    """Fingerprints, revision and roles of a model, read from its files; loads the tokenizer and no weights.

    `weights` stands for the fingerprint of weights that do not lie in the folder.
    """
    folder, tokenizer = resolve(model), load_tokenizer(model)
    config = read_json(folder / "config.json")
    text_config = config.get("text_config") or config
    return {
        "path": model.path,
        "revision": folder.name if _from_hub(model, folder) else model.revision,
        "fingerprint": weights or fingerprint(folder),
        "config_hash": config_hash(folder),
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "template_hash": template_hash(tokenizer),
        "model_type": config.get("model_type"),
        "tokens": len(tokenizer),
        "vocab_size": text_config.get("vocab_size"),
        "eos_token": tokenizer.eos_token,
        "eos_token_id": tokenizer.eos_token_id,
        "generation_eos_token_id": generation_eos(folder),
        "pad_token_id": tokenizer.pad_token_id,
        "dtype": model.dtype,
        "attention": model.attention,
        "trust_remote_code": model.trust_remote_code,
    }


def pinned(model: Model, facts: dict[str, Any]) -> Model:
    """The same model at the revision that run.json recorded, however its hub name moves later."""
    return model.model_copy(update={"revision": facts["revision"]})


def _from_hub(model: Model, folder) -> bool:
    """The hub's cache names a snapshot by its commit."""
    return bool(HUB_NAME.fullmatch(model.path)) and folder.parent.name == "snapshots"
