"""Runs to report: a plain one of three rounds and one in progress, and one in which every text is hostile."""

import json

import made_rounds as made
import pytest
from browser import chromium

from storage.objects import open_store

HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(2)>", "</span></div></main><h1>out</h1>",
    "<svg onload=alert(3)><style>*{display:none}</style></svg>", '"><iframe src="javascript:alert(4)"></iframe>',
    "' onmouseover='alert(5)' x='", "\x1b[31mred\x1b[0m\x1b]0;title\x07", "\u202egnp.exe\u2066\u200b", "NUL\x00here",
    "$\\frac{1}{2}$ $x^2$ $", "{{ 7*7 }} {% raw %} {# no #}",
    "[click](javascript:alert(6)) ![x](http://evil.example/p.png)", "| a | b |\n|---|---|\n| c | d |", "x" * 20_000,
    "<style>body{background:url(http://evil.example/)}</style>",
    '<a href="https://evil.example" onclick=alert(7)>x</a>',
    "&lt;b&gt; &amp; &#60;i&#62;", "--><script>alert(8)</script><!--", "\r\nnext\u2028line\u2029para",
    "</title></style></script><meta http-equiv=refresh content='0;url=http://evil.example'>",
]
"""What a model, a data set or a mask may write."""
FIRST = 200
"""Token id of the first hostile text."""


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def tokenizer(texts: list[str]) -> str:
    """A tokenizer.json whose tokens FIRST, FIRST + 1, ... have these texts."""
    return json.dumps({"model": {"type": "BPE", "vocab": {"one": 101, "two": 102, "three": 103}}, "decoder": None,
                       "added_tokens": [{"id": FIRST + i, "content": text} for i, text in enumerate(texts)]})


def steps_of(number: int, count: int = 4):
    left = [0.5 / (1 + number + i / count) for i in range(count)]
    return made.steps(count, step=[number * count + i for i in range(1, count + 1)], opd_reverse_kl=left,
                      teacher_kl=left, student_entropy=[1.2 - 0.1 * each for each in left],
                      topk_left=[0.02 * i for i in range(count)], drift=[0.012 * i for i in range(count)],
                      ess=[1 - 0.05 * i for i in range(count)])


def facts_of(number: int, stopped: str = "done") -> dict:
    """Of the train receipt."""
    return {"steps": 4, "run_steps": 4 * number + 4, "stopped": stopped,
            "closing": {"positions": 40, "teacher_kl": 0.5 / (2 + number), "student_entropy": 1.1, "student_mass": 0.9,
                        "drift": 0.048, "ess": 0.8, "topk_left": 0.08, "opd_reverse_kl": 0.5 / (2 + number)}}


def continuations_of(responses: dict[int, list[int]]) -> list:
    """The teacher is right from any depth but the deepest, the student from none but depth 0."""
    places = [(rollout, depth) for depth in (0, 4, 8) for rollout, response in responses.items()
              if depth < len(response)]
    ended = {rollout: rollout % 2 == 0 for rollout in responses}
    return [made.continued(role, {place: [place[1] < limit, place[1] == 0] for place in places}, ended)
            for role, limit in (("student", 1), ("teacher", 8))]


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """Run `plain`: rounds 0 to 2 committed and graded, of two tasks, round 2 with continuations and with rollouts
    whose teacher columns were reused; round 3 with scores of one of two shards."""
    folder = tmp_path_factory.mktemp("plain")
    store = open_store(folder / "store", create=True)
    made.start_run(store, folder, "plain", tokenizer(["a ", "b\n", "<|im_end|>"]))
    first = None
    for number in range(3):
        responses = {100 * number + each: [FIRST, FIRST + 1] * each + [FIRST + 2] for each in range(1, 7)}
        size = sum(len(response) for response in responses.values())
        tasks = {each: "sums" if each % 2 else "words" for each in responses}
        sources = {each: first if number == 2 and each % 3 == 0 else None for each in responses}
        of_token = [each for each, response in responses.items() for _ in response]
        scored = made.tokens(responses, teacher_log_prob=[-0.7 - (i % 7) / (number + 1) for i in range(size)],
                             task=[tasks[each] for each in of_token],
                             rollout_log_prob=[-0.7 - 0.3 * (number == 1)] * size,
                             reused_from=[sources[each] for each in of_token])
        mask = made.mask(scored, [float(i % 5 > 0) for i in range(size)], [[] if i % 5 else ["fifth"] for i in
                                                                          range(size)])
        graded = [made.graded("student", {each: [each <= number + 1] * 2 for each in range(1, 6)})]
        if number == 0:
            graded += [made.graded("start", {each: [each == 1, False] for each in range(1, 6)}),
                       made.graded("teacher", {each: [True, True] for each in range(1, 6)})]
        written = made.rollouts(responses, task=list(tasks.values()), reward=[1.0, 0.0, 1.0, 0.0, 0.0, 1.0])
        round = made.commit_round(store, folder, "plain", number, [(written, scored)], [mask], steps_of(number), graded,
                                  continuations_of(responses) if number == 2 else [],
                                  facts_of(number, "drift_fuse" if number == 1 else "done"))
        first = first or round.manifest().id
        for stage, seconds in (("rollout", 2.0), ("score", 3.0), ("train", 1.0)):
            round.note_timing(stage, 0, {"seconds": seconds + number, "rows": 5, "host": "secret-host"})
    begun = {900: [FIRST, FIRST + 2]}
    made.begin_round(store, "plain", 3, [(made.rollouts(begun), made.tokens(begun))], answers=1)
    return store


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """Run `hostile`: one round in which every text that a stage keeps is one of HOSTILE."""
    folder = tmp_path_factory.mktemp("hostile")
    store = open_store(folder / "store", create=True)
    made.start_run(store, folder, "hostile", tokenizer(HOSTILE))
    count = len(HOSTILE)
    responses = {each: list(range(FIRST, FIRST + count)) for each in range(1, 4)}
    scored = made.tokens(responses, teacher_log_prob=[-0.7 - i % 9 for i in range(3 * count)])
    prompts = [json.dumps([{"role": text[:50], "content": text}]) for text in (HOSTILE[0], HOSTILE[12], HOSTILE[5])]
    written = made.rollouts(responses, response_text=HOSTILE[:3], task=HOSTILE[3:6], messages=prompts,
                            ground_truth=HOSTILE[7:10], data_source=HOSTILE[10:13])
    reasons = [[HOSTILE[i % count]] for i in range(3 * count)]
    mask = made.mask(scored, [0.0] * (3 * count), reasons)
    verdicts = {each: [each % 2 == 0] for each in range(count)}
    turned = HOSTILE[7:] + HOSTILE[:7]
    graded = made.graded("student", verdicts, task=HOSTILE[4], response_text=HOSTILE, answer=turned,
                         ground_truth=HOSTILE[::-1], verdict_reason=HOSTILE, data_source=turned,
                         messages=[json.dumps([{"role": "user", "content": text}]) for text in HOSTILE[:-1]] + ["{"])
    made.commit_round(store, folder, "hostile", 0, [(written, scored)], [mask], steps_of(0), [graded])
    return store


@pytest.fixture
def hostile_texts():
    return HOSTILE
