r"""How often the answer checker is wrong: the exact one, math-verify as it comes, and both as pipeline uses them.

    OPD_DATA_DIR=/data python -m benchmarks.answer_checker [--altered 1000] [--rewritten-gsm8k 300] [--seed 0]

Four questions, about the reference answers of GSM8K (train and test), MATH-500, AIME 2024 and AMC 2023:

1. Is each right when it is given as the answer: boxed, and, if it is a number, behind #### and in a sentence?
2. Is any of `--altered` altered references (drawn evenly over the sets' answers that are numbers and those that are
   not, each with one part of another value) taken for right? answer_values.py says why they are really different.
3. Is each right in another form that has the same value?
4. And the pairs of answer_pairs.py, written by hand: equal ones, and different ones that a loose checker accepts.

`math-verify` is parse(), parse(), verify() with their defaults on the boxed reference and the response. Wrong verdicts
are counted, the first of them printed. Writes benchmarks/results/answer_checker.json; exits 1 if the checker of the
pipeline takes a different answer for right or a reference for wrong.
"""

import argparse
import json
import logging
import platform
import random
import sys
import time
from collections import Counter
from pathlib import Path

from benchmarks.answer_pairs import EQUAL, UNEQUAL
from benchmarks.answer_values import altered, rewritten
from pipeline.config.model import HubSource
from pipeline.evaluate.answers import is_correct, number_of
from pipeline.evaluate.checker import Checker
from pipeline.prompts.sources import read_source
from storage.errors import UserError

RESULTS = Path(__file__).parent / "results" / "answer_checker.json"
SETS = {"GSM8K train": ("openai/gsm8k", "main", "train", "question"),
        "GSM8K test": ("openai/gsm8k", "main", "test", "question"),
        "MATH-500": ("HuggingFaceH4/MATH-500", None, "test", "problem"),
        "AIME 2024": ("HuggingFaceH4/aime_2024", None, "train", "problem"),
        "AMC 2023": ("AI-MO/aimo-validation-amc", None, "train", "problem")}
SENTENCE = "First I added 17 and 4. After all that there are {} left."
SHOWN = 12


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.answer_checker", description=__doc__.split("\n")[0])
    parser.add_argument("--altered", type=int, default=1000)
    parser.add_argument("--rewritten-gsm8k", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    try:
        sets = references()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    with Checker() as checker:
        graders = {"exact": lambda text, truth: is_correct(text, truth)[0], "math-verify": by_math_verify,
                   "both": lambda text, truth: checker.check(text, truth).correct}
        start = time.perf_counter()
        result = {
            "references": {name: as_given(answers, graders) for name, answers in sets.items()},
            "altered": all_altered(sets, arguments.altered, arguments.seed, graders),
            "rewritten": all_rewritten(sets, arguments.rewritten_gsm8k, arguments.seed, graders),
            "by_hand_equal": graded("equal by hand", [(*pair, "by hand") for pair in EQUAL], True, graders),
            "by_hand_different": graded("different by hand", [(*pair, "by hand") for pair in UNEQUAL], False, graders),
        }
        facts = {"command": "python -m benchmarks.answer_checker", "arguments": vars(arguments),
                 "machine": platform.machine(), "python": platform.python_version(), "versions": checker.versions,
                 "seconds": round(time.perf_counter() - start)}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**facts, **result}, indent=1) + "\n")
    wrong = [forms["false_rejects"]["both"] for each in result["references"].values() for forms in each.values()]
    return int(any([*wrong, *(result[name]["false_accepts"]["both"] for name in ("altered", "by_hand_different"))]))


def references() -> dict[str, list[str]]:
    """Reference answers by set, each answer once."""
    sets = {}
    for name, (hub, subset, split, question) in SETS.items():
        rows = read_source(HubSource(name=hub, subset=subset, split=split, question=question, answer="answer")).rows
        sets[name] = sorted({row.answer for row in rows})
        print(f"{name:12} {len(rows):5} problems, {len(sets[name]):4} different answers")
    return sets


def by_math_verify(text: str, truth: str) -> bool:
    from math_verify import parse, verify

    return verify(parse(f"\\boxed{{{truth}}}"), parse(text))


def as_given(answers: list[str], graders: dict) -> dict:
    """Each answer as an answer to itself."""
    numbers = [answer for answer in answers if number_of(answer) is not None]
    forms = {"boxed": [(answer, f"\\boxed{{{answer}}}") for answer in answers],
             "behind ####": [(answer, f"#### {answer}") for answer in numbers],
             "in a sentence": [(answer, SENTENCE.format(answer)) for answer in numbers]}
    return {name: graded(f"as given, {name}", [(*pair, name) for pair in pairs], True, graders, boxed=False)
            for name, pairs in forms.items()}


def all_altered(sets: dict, count: int, seed: int, graders: dict) -> dict:
    """`count` different alterations, half of them of references that are no numbers (all of MATH-500)."""
    chance = random.Random(f"altered {seed}")
    answers = sorted({answer for each in sets.values() for answer in each})
    kinds = [[answer for answer in answers if (number_of(answer) is None) == other] for other in (True, False)]
    found: dict[tuple[str, str], str] = {}
    while len(found) < count:
        reference = chance.choice(kinds[len(found) % 2])
        kind, text = altered(reference, chance)
        found.setdefault((reference, text), kind)
    return graded("altered", [(*pair, kind) for pair, kind in found.items()], False, graders)


def all_rewritten(sets: dict, gsm8k: int, seed: int, graders: dict) -> dict:
    chosen = random.Random(f"rewritten {seed}").sample(sets["GSM8K train"], min(gsm8k, len(sets["GSM8K train"])))
    answers = sorted({*chosen, *sets["MATH-500"], *sets["AIME 2024"], *sets["AMC 2023"]})
    pairs = [(answer, text, kind) for answer in answers for kind, text in rewritten(answer)]
    return graded("rewritten", pairs, True, graders)


def graded(title: str, pairs: list[tuple[str, str, str]], right: bool, graders: dict, boxed: bool = True) -> dict:
    """Count and print the wrong verdicts over pairs of (reference, answer, kind)."""
    name = "false_rejects" if right else "false_accepts"
    result = {"count": len(pairs), "kinds": dict(Counter(kind for *_, kind in pairs)), name: {}, "ms_per_answer": {}}
    print(f"\n{title}: {len(pairs)}")
    for grader, grade in graders.items():
        start = time.perf_counter()
        wrong = [(reference, text, kind) for reference, text, kind in pairs
                 if grade(f"so \\boxed{{{text}}}" if boxed else text, reference) is not right]
        result["ms_per_answer"][grader] = round((time.perf_counter() - start) / max(len(pairs), 1) * 1e3, 2)
        result[name][grader] = len(wrong)
        print(f"  {grader:12} {len(wrong):4} {name.replace('_', ' ')}, {result['ms_per_answer'][grader]} ms per answer")
        for reference, text, kind in wrong[:SHOWN] if grader == "both" or not right else []:
            print(f"      {reference}  |  {text}  ({kind})")
    return result


if __name__ == "__main__":
    sys.exit(main())
