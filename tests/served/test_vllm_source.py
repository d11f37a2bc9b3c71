"""The two probes of a vLLM teacher, over a teacher that is asked directly: full logits of a real model."""

import numpy as np
import pytest
import torch

from pipeline.context import RoundContext
from pipeline.models import load_model
from pipeline.score.by_vllm.columns import Listed
from pipeline.score.by_vllm.source import Source
from pipeline.score.rows import TokenRows
from storage.errors import UserError
from tests.score.dense_reference import as_table, make_rollouts
from tests.served.conftest import empty_rows
from tests.served.test_partial_config import config
from tests.tiny import byte_tokenizer, save_model

SHARED, PADDED = 259, 20
ROLLOUTS = make_rollouts([(4, 9), (6, 3), (5, 7)], SHARED, seed=0)
WRITTEN = sum(turn["end"] - turn["start"] for rollout in ROLLOUTS for turn in rollout["turns"])


class Dense:
    """A teacher by full logits; `drift` nats are added to each further reading, as a broken cache would."""

    name = "the dense teacher"

    def __init__(self, folder, drift: float = 0.0):
        self.model, self.drift, self.read = load_model(folder), drift, 0

    def prompt_log_probs(self, sequences, starts, entries, on_done):
        found = []
        for sequence, start in zip(sequences, starts):
            log_q = self._log_q(sequence)[start - 1:-1] - self.drift * self.read
            self.read += 1
            own = log_q[np.arange(len(log_q)), sequence[start:]]
            ids = np.argsort(-log_q, axis=1, kind="stable")[:, :entries]
            found.append(Listed(own, (log_q >= own[:, None]).sum(1), ids, np.take_along_axis(log_q, ids, 1)))
        return found

    def log_probs_after(self, prefixes, ids, entries):
        return np.array([self._log_q(prefix)[-1, ids] for prefix in prefixes])

    def _log_q(self, tokens):
        with torch.no_grad():
            return self.model(torch.tensor([tokens])).logits[0].double().log_softmax(-1).numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("teacher"), byte_tokenizer(), seed=2, hidden=64, sharpness=6.0,
                      vocab=SHARED + PADDED)


def read(asking):
    document = {"teacher": {"vocab_size": SHARED + PADDED}, "vocabulary": {"shared": SHARED}}
    context = RoundContext(None, "r", 0, config("score.teacher_top_k=4"), document, None)
    rows = TokenRows(as_table(ROLLOUTS))
    return Source(asking, context).read(rows, list(range(len(rows.rollouts))), lambda *_: None)


def test_padded_rows_that_carry_probability_are_found(folder):
    with pytest.raises(UserError, match="to 20 ids that the student does not have"):
        read(Dense(folder))


def test_padded_rows_that_carry_none_pass_and_the_figure_is_kept(folder):
    empty_rows(folder, SHARED)
    listed, facts = read(Dense(folder))
    assert 0 < facts["unlisted_mass"] < 1e-3 and facts["order_log_prob_difference"] < 1e-9
    assert sum(len(each.ranks_N) for each in listed) == WRITTEN


def test_a_teacher_whose_answers_depend_on_the_order_of_requests_is_refused(folder):
    with pytest.raises(UserError, match="asked again in another order: .* rounding in float32 is below 0.001"):
        read(Dense(folder, drift=0.002))
