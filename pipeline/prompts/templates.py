"""From a problem to the token ids that the student reads: messages, then the tokenizer's chat template.

    messages = [{system}, {user: template with the question in it}]

A question that is a chat already keeps its messages; the template goes around its last user message.
"""

import json
from typing import Any

from pipeline.config.model import Prompts
from storage.errors import UserError
from storage.text import printable

QUESTION = "{question}"
BATCH = 1024
"""Prompts encoded together."""


def check_template(prompts: Prompts) -> None:
    """Raise UserError if the template has no place for the question."""
    if QUESTION not in prompts.template:
        raise UserError(f"prompts.template has no {QUESTION}: every prompt would be the same; put it where the "
                        "question goes")


def messages_of(question: Any, prompts: Prompts, where: str) -> list[dict[str, str]]:
    """The chat of one prompt. Raises UserError, naming `where`, for a question that is neither text nor chat."""
    chat = [{"role": "user", "content": question}] if isinstance(question, str) else _checked_chat(question, where)
    last = chat[-1]
    chat = [*chat[:-1], {**last, "content": prompts.template.replace(QUESTION, last["content"])}]
    if prompts.system is not None and chat[0]["role"] != "system":
        chat = [{"role": "system", "content": prompts.system}, *chat]
    return chat


def as_json(messages: list[dict[str, str]]) -> str:
    """The one form in which messages are stored and hashed."""
    return json.dumps(messages, ensure_ascii=False, separators=(",", ":"))


def encode(messages: list[str], tokenizer) -> list[list[int]]:
    """Prompt token ids for messages in stored form, up to where the assistant begins to write."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(f"the tokenizer of {printable(tokenizer.name_or_path)} has no chat template: use a student "
                        "with one, or add chat_template.jinja to its folder")
    ids = []
    for start in range(0, len(messages), BATCH):
        texts = [_render(json.loads(each), tokenizer) for each in messages[start:start + BATCH]]
        ids += tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _render(chat: list[dict[str, str]], tokenizer) -> str:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:  # such as "System role not supported"
        raise UserError(f"the student's chat template refuses a prompt with the roles "
                        f"{', '.join(each['role'] for each in chat)}: {printable(str(error))}; change prompts.system "
                        "or the data set") from error


def _checked_chat(question: Any, where: str) -> list[dict[str, str]]:
    if not isinstance(question, list) or not all(_is_message(each) for each in question):
        raise UserError(f"{where}: the question is neither a text nor a list of {{role, content}}: name another "
                        "column as prompts.source.question")
    if question[-1]["role"] != "user":
        raise UserError(f"{where}: the chat ends with the role {question[-1]['role'][:40]!a}: it must end with the "
                        "user's question")
    return [{"role": each["role"], "content": each["content"]} for each in question]


def _is_message(each: Any) -> bool:
    return isinstance(each, dict) and isinstance(each.get("role"), str) and isinstance(each.get("content"), str)
