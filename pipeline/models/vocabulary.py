"""Do two tokenizers mean the same by an id? Scores of one model for tokens of another make sense only then.

Refused: an id that is another token for the teacher, or other merge rules. Recorded and warned about: tokens that only
one side has (they come after the shared ids and are cut off), EOS roles, chat templates, padded head sizes.
"""

import hashlib
import json
from dataclasses import dataclass, field

from storage import documents
from storage.errors import UserError


@dataclass(frozen=True)
class Agreement:
    """Ids 0 .. shared - 1 are the same tokens for both models; everything is normalised over them."""

    shared: int
    warnings: list[str] = field(default_factory=list)


def tokenizer_hash(tokenizer) -> str:
    """sha256 over tokens by id and the rules that split text; independent of how files are laid out."""
    return documents.sha256(documents.dump({"tokens": _tokens(tokenizer), "rules": _rules(tokenizer)}))


def template_hash(tokenizer) -> str | None:
    """sha256 of the chat template; None without one."""
    template = tokenizer.chat_template
    if template is None:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def vocabulary_agreement(student, teacher, *, student_rows: int | None = None,
                         teacher_rows: int | None = None) -> Agreement:
    """Compare two tokenizers; `*_rows` are the sizes of the models' heads. Raises UserError if ids or merges differ."""
    ours, theirs = _tokens(student), _tokens(teacher)
    shared = min(len(ours), len(theirs))
    for token_id, (our, their) in enumerate(zip(ours, theirs)):
        if our != their:
            raise UserError(f"the teacher's token {token_id} is {their!a}, the student's is {our!a}: their scores "
                            "cannot be compared; use a teacher with the student's tokenizer")
    our_rules, their_rules = _rules(student), _rules(teacher)
    if our_rules.get("model") != their_rules.get("model"):
        raise UserError("the teacher's merge rules differ from the student's: they split text into other tokens; use "
                        "a teacher with the student's tokenizer")
    for side, rows in (("student", student_rows), ("teacher", teacher_rows)):
        if rows is not None and rows < shared:
            raise UserError(f"the {side}'s head has {rows} rows for a tokenizer of {shared} tokens: this is not its "
                            "tokenizer")
    compared = {
        "tokens": (len(ours), len(theirs)),
        "EOS": (student.eos_token, teacher.eos_token),
        "padding token": (student.pad_token, teacher.pad_token),
        "chat template": (_short(template_hash(student)), _short(template_hash(teacher))),
        "text splitting": (_short(_splitting(our_rules)), _short(_splitting(their_rules))),
        "rows of the head": (student_rows, teacher_rows),
    }
    return Agreement(shared, [f"{what}: {our} for the student, {their} for the teacher"
                              for what, (our, their) in compared.items() if our != their])


def _tokens(tokenizer) -> list[str | None]:
    """Token of every id from 0; None where an id has no token."""
    by_id = {token_id: token for token, token_id in tokenizer.get_vocab().items()}
    return [by_id.get(token_id) for token_id in range(max(by_id) + 1)]


def _rules(tokenizer) -> dict:
    """What turns text into ids, beside the ids themselves; empty for tokenizers without a `tokenizers` backend.

    `model` holds the type and the merges of BPE, the pieces with their scores of a unigram model.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {}
    document = json.loads(backend.to_str())
    model = {name: document["model"].get(name) for name in ("type", "merges")}
    if isinstance(document["model"].get("vocab"), list):
        model["pieces"] = document["model"]["vocab"]
    return {"model": model, "normalizer": document["normalizer"], "pre_tokenizer": document["pre_tokenizer"]}


def _splitting(rules: dict) -> str:
    return documents.sha256(documents.dump({name: rules.get(name) for name in ("normalizer", "pre_tokenizer")}))


def _short(digest: str | None) -> str | None:
    return digest and digest[:8]
