"""The quickstart's pair: a teacher that has learnt to add and subtract, and the same model before it had.

    pair = make_pair(Path("opd-models"))

One fine-tuning run of a tiny Qwen2 on generated problems gives both: the teacher is its end, the student is its state
at the first check that found it able to solve some of the problems. So both share tokenizer, architecture and first
steps, and the gap between them is of known kind: the student knows the form of a solution and slips in its digits.

Promises: Hugging Face folders that any loader reads; a folder that has its name is complete, because it is renamed
into place; a pair made by the same recipe and seed is found again and not made twice. On a CPU the same recipe, seed
and number of threads give the same weights.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.prompts.generated import Problem, problems
from storage.errors import OpdError, UserError
from storage.newfile import sync
from storage.text import printable

TEACHER, STUDENT = "quickstart-teacher", "quickstart-student"
MARKER = "quickstart.json"
"""In each folder: the recipe, its hash, and what the checks measured. Its absence means: not our folder."""
FORMAT = 1
"""Part of the hash: raise it where code that no recipe names changes the weights."""

FIRST_SEED = 1_000_000
"""Problems of fine-tuning have seeds from here: apart from those that configs use, so that rounds ask new ones."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Recipe:
    """Architecture and fine-tuning."""

    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    context: int = 4096
    initializer_range: float = 0.06
    """About 1 / sqrt(hidden_size) / 1.5, where 0.02 is meant for models ten times as wide."""
    steps: int = 1400
    batch_size: int = 16
    """Small: for the same time, batches of 32 learn less."""
    learning_rate: float = 1.5e-3
    warmup_steps: int = 50
    beta2: float = 0.98
    check_every: int = 25
    """Steps between checks."""
    checked_problems: int = 128
    student_from: float = 0.25
    """The student is the model at the first check in which it gives the whole reference solution this probability,
    on average over problems that it has not seen."""


@dataclass(frozen=True)
class Pair:
    """Two model folders; `solved_*` is the mean probability of a reference solution, `made` whether just now."""

    teacher: Path
    student: Path
    student_step: int
    solved_by_student: float
    solved_by_teacher: float
    made: bool

    def as_dict(self) -> dict:
        """Plain data; folders as text."""
        return {**asdict(self), "teacher": str(self.teacher), "student": str(self.student)}


def make_pair(folder: Path = Path("opd-models"), seed: int = 0, progress: Progress | None = None,
              recipe: Recipe = Recipe()) -> Pair:
    """Find the pair in `folder`, or make it. Another pair of ours there is replaced, anything else refused."""
    key = _key(recipe, seed)
    marks = [_read_mark(folder / name) for name in (TEACHER, STUDENT)]
    if all(mark is not None and mark["key"] == key for mark in marks):
        return Pair(folder / TEACHER, folder / STUDENT, **marks[0]["measured"], made=False)
    for name, mark in zip((TEACHER, STUDENT), marks):
        if mark is None and (folder / name).exists():
            raise UserError(f"{printable(str(folder / name))} exists and is not of the quickstart: move it away, or "
                            "use another folder")
    measured = _make(folder, recipe, seed, key, progress or (lambda what, done, total: None))
    return Pair(folder / TEACHER, folder / STUDENT, **measured, made=True)


def _make(folder: Path, recipe: Recipe, seed: int, key: str, progress: Progress) -> dict:
    """Fine-tune and write both folders, the student first."""
    from pipeline.quickstart.tokenizer import train_tokenizer
    from pipeline.train.sft import train_sft

    tokenizer = train_tokenizer()
    fresh = recipe.steps * recipe.batch_size
    known = problems("arithmetic", FIRST_SEED + seed, fresh + recipe.checked_problems, "train")
    examples = [_example(problem, tokenizer) for problem in known]
    examples, checked = examples[:fresh], examples[fresh:]
    model = _new_model(recipe, seed, tokenizer)
    early = _EarlyState(model, checked, recipe)

    def after_step(_, done: int, total: int) -> None:
        early.look(done)
        progress("teacher", done, total)

    train_sft(model, examples, steps=recipe.steps, batch_size=recipe.batch_size, learning_rate=recipe.learning_rate,
              warmup_steps=recipe.warmup_steps, betas=(0.9, recipe.beta2), seed=seed, schedule="cosine",
              progress=after_step)
    if early.weights is None:
        raise OpdError(f"the quickstart's model had not learnt to solve {recipe.student_from:.0%} of its problems "
                       f"after {recipe.steps} steps: use another seed")
    measured = {"student_step": early.step, "solved_by_student": early.solved,
                "solved_by_teacher": solved(model, checked)}
    mark = {"key": key, "recipe": asdict(recipe), "seed": seed, "measured": measured}
    teacher_weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(early.weights)
    _put(folder / STUDENT, model, tokenizer, mark)
    model.load_state_dict(teacher_weights)
    _put(folder / TEACHER, model, tokenizer, mark)
    return measured


class _EarlyState:
    """Keeps the weights of the first check that is good enough for a student."""

    def __init__(self, model, checked: list, recipe: Recipe):
        self.model, self.checked, self.recipe = model, checked, recipe
        self.weights, self.step, self.solved = None, 0, 0.0

    def look(self, step: int) -> None:
        if self.weights is not None or step % self.recipe.check_every:
            return
        self.solved = solved(self.model, self.checked)
        if self.solved >= self.recipe.student_from:
            self.step = step
            self.weights = {name: value.clone() for name, value in self.model.state_dict().items()}


def solved(model, examples: list[tuple[list[int], list[int]]]) -> float:
    """Mean over examples of p(response | prompt), one forward pass per 64 of them.

    It is the share of samples at temperature 1 that would be the reference solution, token by token.
    """
    import torch
    from torch.nn.functional import cross_entropy

    total = 0.0
    with torch.no_grad():
        for start in range(0, len(examples), 64):
            batch = examples[start:start + 64]
            width = max(len(prompt) + len(response) for prompt, response in batch)
            input_ids_BT = torch.zeros(len(batch), width, dtype=torch.long)
            target_BT = torch.full((len(batch), width), -100)
            for b, (prompt, response) in enumerate(batch):
                input_ids_BT[b, :len(prompt) + len(response)] = torch.tensor(prompt + response)
                target_BT[b, len(prompt) - 1:len(prompt) + len(response) - 1] = torch.tensor(response)
            logits_BVT = model(input_ids=input_ids_BT, use_cache=False).logits.transpose(1, 2)
            total += (-cross_entropy(logits_BVT, target_BT, reduction="none").sum(1)).exp().sum().item()
    return total / len(examples)


def _example(problem: Problem, tokenizer) -> tuple[list[int], list[int]]:
    """(prompt ids, response ids), as a round's prompts are encoded; the response ends with EOS."""
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": problem.question}], tokenize=False,
                                           add_generation_prompt=True)
    prompt_ids, solution_ids = tokenizer([prompt, problem.solution], add_special_tokens=False)["input_ids"]
    return prompt_ids, [*solution_ids, tokenizer.eos_token_id]


def _new_model(recipe: Recipe, seed: int, tokenizer):
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    roles = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=recipe.hidden_size, intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_value_heads, max_position_embeddings=recipe.context, tie_word_embeddings=True,
        initializer_range=recipe.initializer_range, bos_token_id=None, **roles)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(**roles)
    return model


def _key(recipe: Recipe, seed: int) -> str:
    """What the weights depend on, but for versions and threads: recipe, seed, data and tokenizer."""
    from pipeline.quickstart.tokenizer import train_tokenizer

    sample = [asdict(problem) for problem in problems("arithmetic", FIRST_SEED + seed, 64, "train")]
    tokenizer = train_tokenizer()
    content = [FORMAT, asdict(recipe), seed, sample, tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_mark(folder: Path) -> dict | None:
    """The folder's marker, None if it has none."""
    file = folder / MARKER
    return json.loads(file.read_bytes()) if file.is_file() else None


def _put(target: Path, model, tokenizer, mark: dict) -> None:
    """Write a model folder beside `target`, make it durable, and rename it into place."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    new = target.parent / f".tmp-{uuid.uuid4().hex}"
    new.mkdir(parents=True)
    model.save_pretrained(new)
    tokenizer.save_pretrained(new)
    (new / MARKER).write_text(json.dumps(mark, indent=1, sort_keys=True) + "\n")
    for path in (*new.iterdir(), new):
        sync(path)
    if target.exists():  # another pair of ours
        shutil.rmtree(target)
    os.rename(new, target)
    sync(target.parent)
