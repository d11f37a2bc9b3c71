"""A teacher that vLLM runs, in this machine's process or behind a URL: what the score stage asks of either.

    source = open_source(context)
    listed, facts = source.read(rows, members, progress)

Every shard is read twice in small part: up to ORDER_ROLLOUTS of its rollouts a second time, in another order and with
other company, and their log-probs must be the same up to rounding. A prefix cache, a kernel that depends on its batch
by more than its dtype, or answers mixed up between requests show there.

Arrays: R rows of a rollout, N rows in all.
"""

from typing import Protocol

import numpy as np

from pipeline.context import Progress, RoundContext
from pipeline.score.by_vllm.columns import Listed, entries_asked, head_rows_of
from pipeline.score.rows import TokenRows
from storage.errors import UserError

ORDER_ROLLOUTS = 4
ORDER_BOUND = {"float32": 1e-3, "bfloat16": 0.1}
"""Mean nats between two readings, by teacher.dtype: bfloat16 kernels differ by .005 to .03 between batches."""
UNSHARED_PREFIXES = 4
UNSHARED_BOUND = 1e-3
"""Mean probability of ids that are not shared and not listed: it is missing in every log-prob."""


class Asking(Protocol):
    """vLLM, wherever it runs."""

    name: str
    """For messages, such as "teacher server http://host:8000"."""

    def prompt_log_probs(self, sequences: list[list[int]], starts: list[int], entries: int,
                         on_done) -> list[Listed]:
        """What it says of sequence[start:], for every sequence."""

    def log_probs_after(self, prefixes: list[list[int]], ids: list[int], entries: int) -> np.ndarray:
        """[prefixes, ids]: log-probs of `ids` as the next token of each prefix."""


class Source:
    """The teacher of a run, read through vLLM."""

    def __init__(self, asking: Asking, context: RoundContext):
        facts = context.document["teacher"]
        self.asking, self.name, self.dtype = asking, asking.name, context.config.teacher.dtype
        self.shared = context.document["vocabulary"]["shared"]
        self.head_rows = head_rows_of(facts, self.shared)
        self.entries = entries_asked(context.config.score, self.shared, self.head_rows)

    def read(self, rows: TokenRows, members: list[int], progress: Progress) -> tuple[list[Listed], dict]:
        """What the teacher says of the rows of each member, and the facts of the two probes. Raises UserError if the
        second reading differs, or if ids that are not shared carry probability unseen."""
        sequences = [np.concatenate([rows.prompts[m], rows.responses[m]]).tolist() for m in members]
        starts = [len(rows.prompts[m]) for m in members]
        whole = self.asking.prompt_log_probs(sequences, starts, self.entries,
                                             lambda done: progress("teacher", done, len(members)))
        listed = [_at(each, rows.position_N[rows.rows_of(m)]) for each, m in zip(whole, members)]
        return listed, self._order(sequences, starts, whole) | self._unshared(sequences, starts, whole)

    def _order(self, sequences, starts, first: list[Listed]) -> dict:
        """Read some again: the last of them first, one by one."""
        step = max(1, len(sequences) // ORDER_ROLLOUTS)
        again = list(range(0, len(sequences), step))[:ORDER_ROLLOUTS][::-1]
        found = [self.asking.prompt_log_probs([sequences[i]], [starts[i]], self.entries, lambda done: None)[0]
                 for i in again]
        difference = np.abs(np.concatenate([other.log_probs_N - first[i].log_probs_N
                                            for other, i in zip(found, again)]))
        mean = float(difference.mean()) if len(difference) else 0.0
        if not mean <= ORDER_BOUND[self.dtype]:
            raise UserError(f"{self.name} gives other log-probs for the same tokens when asked again in another order: "
                            f"{mean:.3g} nats on average over {len(difference)} tokens, rounding in {self.dtype} is "
                            f"below {ORDER_BOUND[self.dtype]}; its scores depend on what else it computes: switch off "
                            "what shares work between requests, or use score.engine.type = 'scorer'")
        return {"order_tokens": len(difference), "order_log_prob_difference": mean,
                "order_largest": float(difference.max(initial=0.0))}

    def _unshared(self, sequences, starts, whole: list[Listed]) -> dict:
        """Measure what ids that are neither shared nor listed carry, after a few prompts."""
        ids = list(range(self.shared, self.head_rows))
        if not ids or not sequences:
            return {}
        prefixes = [sequence[:start] for sequence, start in zip(sequences, starts)][:UNSHARED_PREFIXES]
        probs = np.exp(self.asking.log_probs_after(prefixes, ids, self.entries))
        unlisted = np.array([~np.isin(ids, each.ids_NJ[0]) for each in whole[:UNSHARED_PREFIXES]])
        mass = float((probs * unlisted).sum(1).mean())
        if mass > UNSHARED_BOUND:
            raise UserError(f"{self.name} gives a probability of {mass:.2g} to {len(ids)} ids that the student does "
                            "not have, and its log-probs lack it: use score.engine.type = 'scorer', which normalises "
                            "over the shared ids")
        return {"unlisted_mass": mass}


def _at(listed: Listed, position_R: np.ndarray) -> Listed:
    """Only the positions that the student wrote."""
    return Listed(*(getattr(listed, name)[position_R] for name in Listed.__dataclass_fields__))


def open_source(context: RoundContext) -> Source:
    """The teacher that the config names. Raises UserError unless it is the one that the run began with."""
    settings = context.config.score.engine
    if settings.type == "vllm":
        from pipeline.score.by_vllm.offline import open_teacher

        return Source(open_teacher(context), context)
    from pipeline.score.by_vllm.server import open_server

    return Source(open_server(settings, context.document["teacher"], context.config.teacher.dtype), context)
