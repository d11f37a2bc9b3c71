"""Loading models and tokenizers from folders that were checked, in evaluation mode, on the device there is."""

from pathlib import Path

from pipeline.config.model import Model
from pipeline.models.files import resolve
from pipeline.models.head import check_head
from storage.errors import UserError
from storage.text import printable
from storage.weights import read_json, weight_files

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "tekken.json")
"""Without one of these transformers 5 makes up an empty tokenizer of the model's class."""


def device():
    """`cuda` where there is one, the CPU otherwise."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(model: Model | Path, *, trust_remote_code: bool | None = None):
    """The tokenizer in the model's folder."""
    from transformers import AutoTokenizer

    folder, trusted = resolve(model), _trusted(model, trust_remote_code)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{folder} has no tokenizer ({', '.join(TOKENIZER_FILES[:2])}, ...): download it again")
    if not trusted and "auto_map" in _json_if_there(folder / "tokenizer_config.json"):
        _refuse_foreign_code(folder, "tokenizer")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
    except (OSError, ValueError, KeyError, TypeError) as error:  # what transformers raises for missing or broken files
        raise UserError(f"{folder} has no tokenizer that can be read: {_first_line(error)}") from error


def load_model(model: Model | Path, *, dtype: str | None = None, attention: str | None = None, device=None,
               trust_remote_code: bool | None = None):
    """Load a causal language model in evaluation mode. A `Model` brings its own dtype, attention and trust.

    Raises UserError for a folder that is not one, pickled or incomplete weights, weights that do not fit the config,
    code that came with the weights, and heads that `output_head` does not describe.
    """
    folder, trusted = resolve(model), _trusted(model, trust_remote_code)
    weight_files(folder)
    _check_architecture(folder, trusted)
    loaded = _from_pretrained(folder, dtype or getattr(model, "dtype", "float32"),
                              attention or getattr(model, "attention", "sdpa"), trusted)
    loaded = loaded.to(device if device is not None else _default_device()).eval()
    check_head(loaded)
    return capping(loaded)


def capping(model):
    """The model, with `eager` in place of `sdpa` where it caps its attention scores, as Gemma 2 does: transformers'
    sdpa leaves the caps out without a word, which is another model (up to .9 nat in one with sharp attention)."""
    config = model.config.get_text_config()
    if config._attn_implementation == "sdpa" and getattr(config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")
    return model


def _from_pretrained(folder: Path, dtype: str, attention: str, trusted: bool):
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation=attention, use_safetensors=True,
            trust_remote_code=trusted, output_loading_info=True)
    except SafetensorError as error:
        raise UserError(f"{folder}: its weights are not whole safetensors files ({_first_line(error)}): "
                        "download them again") from error
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:  # sizes that differ, no flash-attn
        _raise_if_out_of_memory(error)
        raise UserError(f"model {folder} cannot be loaded with attention {attention!r} as {dtype}: "
                        f"{_first_line(error)}") from error
    _check_complete(folder, info)
    return model


def _raise_if_out_of_memory(error: Exception) -> None:
    """Memory is no mistake in the folder: let it pass, a retry may find room."""
    import torch

    if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
        raise error


def _check_complete(folder: Path, info: dict) -> None:
    """transformers fills what is missing with random numbers and a warning."""
    for kind in ("missing_keys", "mismatched_keys"):
        if info.get(kind):
            name = printable(str(sorted(map(str, info[kind]))[0]))
            raise UserError(f"the weights in {folder} do not fit their config.json: {kind.split('_')[0]} {name} and "
                            f"{len(info[kind]) - 1} more; download the model again")


def _check_architecture(folder: Path, trusted: bool) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or (trusted and "auto_map" in config):
        return
    if "auto_map" in config:
        _refuse_foreign_code(folder, "model")
    raise UserError(f"{folder}: transformers has no causal language model of type '{printable(str(kind))}': "
                    "use another model, or a newer transformers")


def _refuse_foreign_code(folder: Path, what: str) -> None:
    raise UserError(f"the {what} in {folder} needs code that came with it, which is not run: read that code, then set "
                    "trust_remote_code = true for this model, or use a model that transformers knows")


def _json_if_there(file: Path) -> dict:
    return read_json(file) if file.exists() else {}


def _trusted(model: Model | Path, trust_remote_code: bool | None) -> bool:
    return getattr(model, "trust_remote_code", False) if trust_remote_code is None else trust_remote_code


def _default_device():
    return device()


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return printable(lines[0].strip()) if lines else type(error).__name__
