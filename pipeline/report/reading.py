"""What there is to read: rollouts token by token, the tokens that went worst, held-out answers with their verdicts."""

import json
import math
from typing import Any

from pipeline.report.asked import Source
from pipeline.report.document import Answer, Block, Message, Note, Rollout, Section, Table, Token
from pipeline.report.text import MISSING, NEWLINE, count, fixed, on_one_line, percent, shortened, visible

_HEAD, _TAIL = 700, 200
"""Tokens of a rollout that are shown: the first and the last."""
_TOKEN_CHARACTERS = 120
_PROMPT_CHARACTERS, _MESSAGES = 1500, 6
_RESPONSE_CHARACTERS = 2500
TONES = (("n3", -5.0), ("n2", -2.0), ("n1", -0.5), ("z", 0.5), ("p1", 2.0), ("p2", math.inf))
"""Class of the style sheet, and the gap in nats up to which it reaches."""
_CHOICES = {"worst": "Worst", "middle": "Middle", "best": "Best"}


def tone(gap: float) -> str:
    return next(name for name, up_to in TONES if gap <= up_to)


def messages(text: str) -> list[Message]:
    """The prompt, out of its JSON; as it stands where it is no list of messages."""
    try:
        listed = json.loads(text)
        pairs = [(str(each["role"]), str(each["content"])) for each in listed]
    except (ValueError, TypeError, KeyError, RecursionError):  # a data set wrote it
        pairs = [("prompt", text)]
    found = [message(role, content, _PROMPT_CHARACTERS) for role, content in pairs[-_MESSAGES:]]
    left = len(pairs) - len(found)
    return [message("…", f"{left} earlier messages", 80), *found] if left else found


def message(role: str, content: str, limit: int) -> Message:
    shown, cut = shortened(content, limit)
    return Message(on_one_line(role, 30), visible(shown), cut)


# --- rollouts, token by token ---


def inspector_section(source: Source) -> Section:
    """Three rollouts of the round in question, or of the run's last round with scores."""
    at = source.latest
    chosen = [] if at is None else source.rows_of("inspected_rollouts", at)
    if not chosen:
        return Section("inspector", "Token inspector", "", [Note("No scored rollouts yet.")])
    tokens = source.rows_of("inspected_tokens", at)
    asks = [source.command("inspected_tokens"), source.command("inspected_rollouts")]
    blocks = [rollout(row, [each for each in tokens if each["rollout_id"] == row["rollout_id"]], asks)
              for row in chosen]
    on_plots = ("Each token is coloured by its gap, log q − log p in nats; point at it for its numbers. Tokens that a "
                "mask took out of the loss are grey.")
    return Section("inspector", "Token inspector", f"Rollouts of round {at} with the lowest, the middle and the "
                                                   "highest mean gap.", blocks, on_plots)


def rollout(row: dict[str, Any], tokens: list[dict[str, Any]], asks: list[str]) -> Rollout:
    shown = tokens if len(tokens) <= _HEAD + _TAIL else tokens[:_HEAD] + tokens[-_TAIL:]
    spelled = [token(each) for each in shown]
    reward = "no reference" if row["reward"] is None else f"reward {row['reward']:g}"
    facts = [f"rollout {row['rollout_id']}", f"{count(row['tokens'])} tokens",
             f"mean gap {fixed(row['mean_gap'], 3)} nats", f"lowest {fixed(row['lowest_gap'], 1)}", reward,
             "cut off" if row["finish_reason"] == "length" else "ended by itself"]
    if row["ground_truth"] is not None:
        facts.append(f"reference {on_one_line(row['ground_truth'], 60)}")
    return Rollout(_CHOICES.get(row["choice"], row["choice"]), " · ".join(facts), messages(row["messages"]),
                   spelled[:_HEAD], spelled[_HEAD:], len(tokens) - len(shown),
                   on_one_line(row["response_text"], 400), asks)


def token(row: dict[str, Any]) -> Token:
    return Token(spelled(row["token_text"], row["token_id"]), tone(row["gap"]), hover(row), row["weight"] == 0)


def spelled(text: str | None, token_id: int) -> str:
    """A token as it is read: a line break as a sign and a break, what cannot be read as its id."""
    if not text:
        return f"⟨{token_id}⟩"
    shown, cut = shortened(text, _TOKEN_CHARACTERS)
    return visible(shown).replace("\n", f"{NEWLINE}\n") + ("…" if cut else "")


def hover(row: dict[str, Any]) -> str:
    """Everything about the token that its colour cannot say."""
    first = ", ".join(f"{quoted(each['token_text'], each['token_id'])} {probability(each['log_prob'])}"
                      for each in row["teacher_first"] or [])
    lines = [f"{quoted(row['token_text'], row['token_id'])} at {row['position']}, gap {fixed(row['gap'], 2)} nats",
             f"student {logged(row['student_log_prob'])}",
             f"teacher {logged(row['teacher_log_prob'])}, rank {count(row['teacher_rank'])}",
             f"teacher's first: {first}"]
    if row["weight"] is not None and row["weight"] != 1:
        reasons = ", ".join(on_one_line(reason, 40) for reason in (row["reasons"] or [])[:4])
        lines.append(f"{'masked' if row['weight'] == 0 else 'weight ' + format(row['weight'], 'g')}: {reasons}")
    return "\n".join(lines)


def quoted(text: str | None, token_id: int | None) -> str:
    if text:
        return f"“{on_one_line(text, 24)}”"
    return MISSING if token_id is None else f"⟨{token_id}⟩"


def logged(log_prob: float) -> str:
    return f"{fixed(log_prob, 2)} ({probability(log_prob)})"


def probability(log_prob: float) -> str:
    chance = math.exp(log_prob)
    return percent(chance) if chance >= 0.0005 else f"{chance:.0e}".replace("e-0", "e-").replace("-", "−")


# --- tokens that went worst ---


def worst_section(source: Source) -> Section:
    """Single tokens, and tokens by kind, on which the teacher disagrees most."""
    at = source.latest
    worst = [] if at is None else source.rows_of("worst_tokens_by_round", at)
    if not worst:
        return Section("worst", "Worst tokens", "", [Note("No scored tokens yet.")])
    single = Table(["token", "gap", "student", "teacher", "rank", "teacher's first", "rollout", "position"],
                   [[quoted(row["token_text"], row["token_id"]), fixed(row["gap"], 1),
                     probability(row["student_log_prob"]), probability(row["teacher_log_prob"]),
                     count(row["teacher_rank"]), quoted(row["teacher_first"], None), str(row["rollout_id"]),
                     count(row["position"])] for row in worst],
                   source.command("worst_tokens_by_round"),
                   "The ten lowest gaps. A special token here is a mistake of format: mask it.",
                   frozenset({1, 2, 3, 4, 7}))
    blocks: list[Block] = [single]
    kinds = source.rows_of("disliked_tokens", at)
    if kinds:
        blocks.append(Table(["token", "mean gap", "times sampled", "student's mean probability", "teacher's"],
                            [[quoted(row["token_text"], row["token_id"]), fixed(row["mean_gap"], 2),
                              count(row["tokens"]), percent(row["mean_student_prob"]),
                              percent(row["mean_teacher_prob"])] for row in kinds],
                            source.command("disliked_tokens"),
                            "Tokens by their mean gap, among those sampled at least 8 times.",
                            frozenset({1, 2, 3, 4})))
    return Section("worst", "Worst tokens", f"Of round {at}, where the teacher disagrees most.", blocks)


# --- held-out answers ---


def answers_section(source: Source) -> Section | None:
    """Right and wrong answers of the round in question, or of the last that was graded; None without any."""
    graded = [row["round"] for row in source.rows("accuracy") if row["role"] == "student"]
    if not graded:
        return None
    at = max(graded)
    blocks = [answer(row, source.command("graded_answers")) for row in source.rows_of("graded_answers", at)]
    text = (f"Of the student after round {at}: answers that count as right, and answers that count as wrong, with what "
            "the checker said.")
    return Section("answers", "Held-out answers", text, blocks)


def answer(row: dict[str, Any], command: str) -> Answer:
    problem = messages(row["messages"])
    facts = [("problem", on_one_line(problem[-1].content, 200) if problem else MISSING),
             ("read out", on_one_line(row["answer"], 120) if row["answer"] is not None else "nothing"),
             ("reference", on_one_line(row["ground_truth"], 120)), ("verdict", on_one_line(row["verdict_reason"], 200))]
    length = f"{count(row['response_tokens'])} tokens{', cut off' if row['finish_reason'] == 'length' else ''}"
    title = f"{on_one_line(row['task'])}, problem {row['prompt_id']}, sample {row['sample']}, {length}"
    response = message("student", row["response_text"], _RESPONSE_CHARACTERS)
    return Answer(row["correct"], title, facts, problem, response, command)
