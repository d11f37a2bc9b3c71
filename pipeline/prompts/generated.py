"""Problems written by a generator: any number of them, each with a worked solution and an answer to check.

`arithmetic` is a sum or a difference of two numbers of two to four digits, told as a short story. The solution is
a scratch pad: both numbers at one width, then a line per column from the ones to the left, `digit operator digit
operator carry = result`, with `+10` for a borrowed ten. The last line is `#### N`.

    Ava has 462 coins and gives away 95 of them. How many coins are left?

    462-095
    2-5-0+10=7
    6-9-1+10=6
    4-0-1=3
    #### 367

Everything is decided by the seed. A pair of numbers belongs to the split that its hash says, so `train` and
`held_out` share no sum, whatever their seeds and sizes; about one pair of eight is held out. A longer list of
problems begins with the shorter one.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from storage.errors import UserError

OPERATORS = "+-"
DIGITS = (2, 4)
HELD_OUT_SHARE = 8
"""One of so many pairs of numbers is held out."""
MOST = 1 << 20
"""Beyond this, drawing distinct problems becomes slow."""

NAMES = ("Ava", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Henry", "Iris", "Jack", "Kate", "Leo", "Mia",
         "Noah", "Olga", "Paul")
ITEMS = ("apples", "books", "cards", "coins", "eggs", "flowers", "marbles", "pages", "pencils", "shells", "stamps",
         "stickers")
STORIES = {
    "+": ("{name} has {a} {items} and buys {b} more. How many {items} does {name} have now?",
          "{name} counts {a} {items} on Monday and {b} {items} on Tuesday. How many {items} is that altogether?",
          "There are {a} {items} in one box and {b} {items} in another. How many {items} are there in total?",
          "{name} has {a} {items} and {other} has {b}. How many {items} do they have together?"),
    "-": ("{name} has {a} {items} and gives away {b} of them. How many {items} are left?",
          "{name} had {a} {items} and sold {b} at the market. How many {items} does {name} still have?",
          "There were {a} {items} in the shop and {b} were sold. How many {items} remain?",
          "{name} has {a} {items} and {other} has {b}. How many more {items} does {name} have?"),
}


@dataclass(frozen=True)
class Problem:
    """A question, its worked solution (the last line is `#### answer`) and the answer."""

    question: str
    solution: str
    answer: str


def problems(generator: str, seed: int, count: int, split: str) -> list[Problem]:
    """The first `count` distinct problems of a seed and a split (`train` or `held_out`)."""
    if generator not in GENERATORS:
        raise UserError(f"no generator {generator!r}: there are {', '.join(sorted(GENERATORS))}")
    if split not in ("train", "held_out"):
        raise UserError(f"no split {split!r} of generated problems: there are train, held_out")
    if not 0 < count <= MOST:
        raise UserError(f"{count} generated problems asked for: ask for 1 to {MOST}")
    return list(islice(_distinct(GENERATORS[generator](random.Random(f"{generator} {seed} {split}"), split)), count))


def _distinct(stream: Iterator[Problem]) -> Iterator[Problem]:
    seen = set()
    for problem in stream:
        if problem.question not in seen:
            seen.add(problem.question)
            yield problem


def _arithmetic(rng: random.Random, split: str) -> Iterator[Problem]:
    while True:
        operator = rng.choice(OPERATORS)
        longer = rng.randint(*DIGITS)
        a, b = _number(rng, longer), _number(rng, rng.randint(DIGITS[0], longer))
        if operator == "-" and a < b:
            a, b = b, a
        if _is_held_out(operator, a, b) != (split == "held_out"):
            continue
        name, other = rng.sample(NAMES, 2)
        story = rng.choice(STORIES[operator])
        question = story.format(name=name, other=other, items=rng.choice(ITEMS), a=a, b=b)
        answer = str(a + b if operator == "+" else a - b)
        yield Problem(question, f"{scratch_pad(operator, a, b)}\n#### {answer}", answer)


GENERATORS = {"arithmetic": _arithmetic}


def _number(rng: random.Random, digits: int) -> int:
    return rng.randrange(10 ** (digits - 1), 10 ** digits)


def _is_held_out(operator: str, a: int, b: int) -> bool:
    """By the unordered pair: 12 + 34 and 34 + 12 are in one split."""
    pair = f"{operator} {min(a, b)} {max(a, b)}"
    return hashlib.sha256(pair.encode()).digest()[0] % HELD_OUT_SHARE == 0


def scratch_pad(operator: str, a: int, b: int) -> str:
    """The columns of a + b or a - b (a >= b), least significant first, one line each, carries and borrows written."""
    width = len(str(max(a, b)))
    lines, carry = [f"{a:0{width}}{operator}{b:0{width}}"], 0
    for place in range(width):
        upper, lower = a // 10 ** place % 10, b // 10 ** place % 10
        if operator == "+":
            result = upper + lower + carry
            lines.append(f"{upper}+{lower}+{carry}={result}")
            carry = result // 10
        else:
            result = upper - lower - carry
            lines.append(f"{upper}-{lower}-{carry}" + (f"={result}" if result >= 0 else f"+10={result + 10}"))
            carry = int(result < 0)
    return "\n".join(lines)
