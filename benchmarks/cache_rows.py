"""Seeded rows of a `tokens` table with the shape of real ones: what benchmarks/cache_layout.py measures.

Every position draws CANDIDATES ids from a Zipf-Mandelbrot law, p(id) ~ 1 / (id + 20) over V = 151,936 (BPE ids follow
merge order, so small ids are the frequent ones), drops repeats, and gives them log weights

    w_r = -slope * log(r) + N(0, 0.5)      r = 1..CANDIDATES, slope ~ U(0.8, 1.6) per position.

The first candidate's probability is moved to logistic(N(centre, spread)), `flat` or `peaked`; a share of the mass,
exp(U(-9, -3)) of what the first leaves over, lies outside the candidates. That is the teacher. The student is the
teacher plus N(0, STUDENT_NOISE) per candidate, normalised again; the sampled token is the student's draw.

Log-probs are what a scorer computes: float32 differences of a logit and a logsumexp of U(15, 30). Conservative where
it had to choose: ids repeat between positions only as Zipf makes them, and no scalar is a copy of another.

Arrays: N positions, C candidates, K teacher entries, k student entries.
"""

import numpy as np
import pyarrow as pa

from storage import schemas
from storage.grid import snap

VOCABULARY = 151_936
CANDIDATES = 96
STUDENT_NOISE = 0.6
ROLLOUT_TOKENS = 512
SAMPLES = 8
KINDS = {"flat": (-0.3, 1.5), "peaked": (4.0, 3.0)}
"""Centre and spread of the logit of the first candidate's probability."""
_DERIVED = ("rollout_log_prob", "sampling_log_prob", "student_entropy", "teacher_entropy", "teacher_log_tail",
            "student_log_tail")
_CHUNK = 32_768


def make_tokens(kind: str, rows: int, width: schemas.TopK, *, grid: int | None = 32, seed: int = 0) -> pa.Table:
    """Return `rows` rows with the schema `schemas.tokens(width)`; equal arguments give equal tables.

    Without a grid the lists hold exact float32, which is what a scorer has before it stores them.
    """
    generator = np.random.default_rng([seed, sorted(KINDS).index(kind)])
    chunks = [_scores(generator, kind, min(_CHUNK, rows - start), width, grid) for start in range(0, rows, _CHUNK)]
    columns = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    columns |= _places(generator, rows)
    return pa.table([_column(columns, field, rows) for field in schemas.tokens(width)], schema=schemas.tokens(width))


def _scores(generator, kind: str, rows: int, width: schemas.TopK, grid) -> dict[str, np.ndarray]:
    ids_NC, teacher_NC, teacher_rest_N = _teacher(generator, kind, rows)
    student_NC, student_rest_N = _student(generator, teacher_NC, teacher_rest_N)
    teacher_NC, student_NC = (_float32_difference(generator, log_probs) for log_probs in (teacher_NC, student_NC))
    teacher_order_NK = np.argsort(-teacher_NC, axis=1, kind="stable")[:, :width.teacher]
    student_order_Nk = np.argsort(-student_NC, axis=1, kind="stable")[:, :width.student]
    drawn_N1 = _draw(generator, student_NC)
    student_N = _pick(student_NC, drawn_N1)[:, 0]
    teacher_N = _pick(teacher_NC, drawn_N1)[:, 0]
    def on_grid(log_probs):
        return snap(log_probs, grid) if grid else log_probs

    columns = {
        "token_id": _pick(ids_NC, drawn_N1)[:, 0],
        "rollout_log_prob": np.minimum(student_N * generator.normal(1, 0.01, rows), 0),
        "sampling_log_prob": student_N * generator.uniform(0.9, 0.95, rows),
        "student_log_prob": student_N,
        "student_entropy": _entropy(student_NC, student_rest_N),
        "teacher_log_prob": teacher_N,
        "teacher_rank": 1 + (teacher_NC > teacher_N[:, None]).sum(1),
        "teacher_entropy": _entropy(teacher_NC, teacher_rest_N),
        "teacher_log_tail": _log_tail(teacher_NC, teacher_order_NK, teacher_rest_N),
        "student_log_tail": _log_tail(student_NC, teacher_order_NK, student_rest_N),
        "teacher_topk_ids": _pick(ids_NC, teacher_order_NK),
        "teacher_topk_log_probs": on_grid(_pick(teacher_NC, teacher_order_NK)),
        "student_topk_ids": _pick(ids_NC, student_order_Nk),
        "student_topk_log_probs": on_grid(_pick(student_NC, student_order_Nk)),
        "teacher_log_probs_at_student_topk": on_grid(_pick(teacher_NC, student_order_Nk)),
    }
    if width.student_at_teacher:
        columns["student_log_probs_at_teacher_topk"] = on_grid(_pick(student_NC, teacher_order_NK))
    return columns | {name: _float32_difference(generator, columns[name]) for name in _DERIVED}


def _float32_difference(generator, exact: np.ndarray) -> np.ndarray:
    """Round as float32 does when it subtracts a position's logsumexp from its logits."""
    logsumexp = generator.uniform(15, 30, (len(exact),) + (1,) * (exact.ndim - 1)).astype(np.float32)
    return (exact + logsumexp).astype(np.float32) - logsumexp


def _teacher(generator, kind: str, rows: int):
    shift = 20.0
    uniform_NC = generator.random((rows, CANDIDATES))
    ids_NC = (shift * (VOCABULARY / shift + 1) ** uniform_NC - shift).astype(np.int32)
    slope_N1 = generator.uniform(0.8, 1.6, (rows, 1))
    weights_NC = generator.normal(0, 0.5, (rows, CANDIDATES)) - slope_N1 * np.log(np.arange(1, CANDIDATES + 1))
    weights_NC[_repeats(ids_NC)] = -60.0
    centre, spread = KINDS[kind]
    first_N = -np.logaddexp(0, -generator.normal(centre, spread, rows))
    left_N = np.log(-np.expm1(first_N))
    rest_N = left_N + generator.uniform(-9, -3, rows)
    others_N = left_N + np.log1p(-np.exp(rest_N - left_N))
    weights_NC[:, 1:] += (others_N - _logsumexp(weights_NC[:, 1:]))[:, None]
    weights_NC[:, 0] = first_N
    return ids_NC, weights_NC, rest_N


def _repeats(ids_NC: np.ndarray) -> np.ndarray:
    """Mark every id that an earlier candidate of the same position has."""
    order_NC = np.argsort(ids_NC, axis=1, kind="stable")
    sorted_NC = np.take_along_axis(ids_NC, order_NC, 1)
    marks_NC = np.zeros(ids_NC.shape, bool)
    np.put_along_axis(marks_NC, order_NC[:, 1:], sorted_NC[:, 1:] == sorted_NC[:, :-1], 1)
    return marks_NC


def _student(generator, teacher_NC: np.ndarray, teacher_rest_N: np.ndarray):
    student_NC = teacher_NC + generator.normal(0, STUDENT_NOISE, teacher_NC.shape)
    rest_N = teacher_rest_N + generator.normal(0, STUDENT_NOISE, len(teacher_rest_N))
    total_N = np.logaddexp(_logsumexp(student_NC), rest_N)
    return student_NC - total_N[:, None], rest_N - total_N


def _draw(generator, log_probs_NC: np.ndarray) -> np.ndarray:
    return (log_probs_NC + generator.gumbel(size=log_probs_NC.shape)).argmax(1)[:, None]


def _pick(values_NC: np.ndarray, order: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values_NC, order, 1)


def _logsumexp(values_NC: np.ndarray) -> np.ndarray:
    largest_N1 = values_NC.max(1, keepdims=True)
    return np.log(np.exp(values_NC - largest_N1).sum(1)) + largest_N1[:, 0]


def _entropy(log_probs_NC: np.ndarray, rest_N: np.ndarray) -> np.ndarray:
    """Entropy in nats; the mass outside the candidates is spread evenly over the vocabulary."""
    spread = np.log(VOCABULARY - CANDIDATES)
    return -(np.exp(log_probs_NC) * log_probs_NC).sum(1) - np.exp(rest_N) * (rest_N - spread)


def _log_tail(log_probs_NC: np.ndarray, order_NK: np.ndarray, rest_N: np.ndarray) -> np.ndarray:
    outside_NC = log_probs_NC.copy()
    np.put_along_axis(outside_NC, order_NK, -60.0, 1)
    return np.logaddexp(_logsumexp(outside_NC), rest_N)


def _places(generator, rows: int) -> dict[str, np.ndarray]:
    """Sorted (prompt_id, rollout_id, position) of rollouts of ROLLOUT_TOKENS / 2 to 3 / 2 ROLLOUT_TOKENS tokens."""
    lengths = generator.integers(ROLLOUT_TOKENS // 2, 3 * ROLLOUT_TOKENS // 2, rows // (ROLLOUT_TOKENS // 2) + 1)
    rollout_ids = generator.integers(0, 2**63, len(lengths))
    prompt_ids = np.repeat(np.sort(generator.integers(0, 2**63, len(lengths) // SAMPLES + 1)), SAMPLES)[:len(lengths)]
    rollout_ids = rollout_ids[np.lexsort((rollout_ids, prompt_ids))]
    starts = np.cumsum(lengths) - lengths
    return {"rollout_id": np.repeat(rollout_ids, lengths)[:rows], "prompt_id": np.repeat(prompt_ids, lengths)[:rows],
            "position": (np.arange(lengths.sum()) - np.repeat(starts, lengths))[:rows]}


def _column(columns: dict[str, np.ndarray], field: pa.Field, rows: int) -> pa.Array:
    if field.name == "reused_from":
        return pa.nulls(rows, field.type)
    if field.name == "task":
        return pa.repeat(pa.scalar("math"), rows)
    values = columns[field.name]
    if pa.types.is_fixed_size_list(field.type):
        flat = values.astype(field.type.value_type.to_pandas_dtype(), copy=False).reshape(-1)
        return pa.FixedSizeListArray.from_arrays(pa.array(flat), type=field.type)
    return pa.array(values.astype(field.type.to_pandas_dtype()))
