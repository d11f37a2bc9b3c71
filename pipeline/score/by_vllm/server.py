"""A teacher behind a vLLM server: asked for prompt_logprobs over HTTP, and known again from shard to shard.

run.json records as `teacher.scored_by` what the server said when the run began: its model's name, vLLM's version, and
the log-probs of CANARY fixed tokens. Every stage asks again before it scores. Weights cannot be asked for, so the
teacher's fingerprint is `served:<model>`.

Arrays: N tokens, J entries listed.
"""

import hashlib
from typing import Any

import numpy as np

from pipeline.config.teachers import VllmServerTeacher
from pipeline.rollout.server_answers import Malformed, only_choice, prompt_positions
from pipeline.score.by_vllm.columns import ASKED_TOGETHER, Listed
from pipeline.vllm.client import VllmClient, prompt_request
from storage.errors import UserError

CANARY = 32
CANARY_BOUND = {"float32": 0.02, "bfloat16": 0.5}
"""Mean nats: rounding moves log-probs of unlikely tokens by up to .2 in bfloat16, another model by several."""
LEAST, LARGEST = -9000.0, 1e-5
"""Bounds of a log-prob; vLLM writes -9999 for -inf."""


class ServedTeacher:
    """The server of a config, and the model it serves."""

    def __init__(self, settings: VllmServerTeacher):
        self.client = VllmClient(settings, "teacher server")
        self.client.check_served()
        self.name, self.model = self.client.name, settings.model

    def prompt_log_probs(self, sequences: list[list[int]], starts: list[int], entries: int, on_done) -> list[Listed]:
        """See Asking. The server leaves its prefix cache alone for such requests."""
        longest = max(map(len, sequences))
        self.client.check_fits(longest + 1, f"a prompt and its rollout of {longest}, and one behind,")

        def read(index: int, answer: dict) -> Listed:
            try:
                return _listed(answer, sequences[index], starts[index], entries)
            except Malformed as error:
                raise self.client.malformed(str(error)) from error

        return self.client.complete([prompt_request(self.model, sequence, entries) for sequence in sequences], read,
                                    on_done)

    def log_probs_after(self, prefixes: list[list[int]], ids: list[int], entries: int) -> np.ndarray:
        """See Asking. In requests of at most `entries` ids, as many as the server was seen to list."""
        each = min(entries, ASKED_TOGETHER)
        parts = [ids[start:start + each] for start in range(0, len(ids), each)]
        asked = [(prefix, part) for prefix in prefixes for part in parts]
        bodies = [{"model": self.model, "prompt": prefix, "max_tokens": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 0,
                   "min_p": 0.0, "repetition_penalty": 1.0, "logprobs": 0, "logprob_token_ids": part,
                   "return_token_ids": True, "return_tokens_as_token_ids": True, "skip_special_tokens": False}
                  for prefix, part in asked]

        def read(index: int, answer: dict) -> np.ndarray:
            try:
                return _next_log_probs(answer, *asked[index])
            except Malformed as error:
                raise self.client.malformed(str(error)) from error

        return np.concatenate(self.client.complete(bodies, read)).reshape(len(prefixes), len(ids))

    def facts(self, shared: int, entries: int) -> dict[str, Any]:
        """What is recorded of the server when a run begins; it is asked for as many `entries` as its scores need."""
        tokens = canary(shared)
        said = self.prompt_log_probs([tokens], [1], entries, lambda done: None)[0]
        return {"engine": "vllm_server", "model": self.model, "version": self.client.version(),
                "canary": [round(each, 3) for each in said.log_probs_N.tolist()]}

    def check_is(self, recorded: dict[str, Any], shared: int, dtype: str) -> None:
        """Raise UserError unless the server still says what it said when the run began."""
        version = self.client.version()
        if version != recorded["version"]:
            raise UserError(f"{self.name} runs vLLM {version}, this run began with {recorded['version']}: rounds would "
                            "not be comparable; serve the teacher with that version, or start another run")
        said = self.prompt_log_probs([canary(shared)], [1], 1, lambda done: None)[0].log_probs_N
        difference = np.abs(said - np.array(recorded["canary"])).mean()
        if not difference <= CANARY_BOUND[dtype]:
            raise UserError(f"{self.name} serves another teacher than this run began with: its log-probs of "
                            f"{len(said)} fixed tokens moved by {difference:.3g} nats on average; serve the first one "
                            "again, or start another run")


def open_server(settings: VllmServerTeacher, facts: dict[str, Any], dtype: str) -> ServedTeacher:
    """The server, which is the teacher of run.json (`facts`)."""
    recorded, teacher = facts.get("scored_by"), ServedTeacher(settings)
    if not recorded or recorded.get("engine") != "vllm_server" or recorded.get("model") != settings.model:
        raise UserError(f"{teacher.name}: this run did not begin with a teacher served as {settings.model!a}: start "
                        "another run")
    teacher.check_is(recorded, recorded["shared"], dtype)
    return teacher


def canary(shared: int) -> list[int]:
    """Fixed tokens, spread over the shared ids."""
    return [int.from_bytes(hashlib.sha256(b"%d" % i).digest()[:8], "little") % shared for i in range(CANARY)]


def _listed(answer: dict, sequence: list[int], start: int, entries: int) -> Listed:
    """Read K or K + 1 entries per position: the token itself, wherever it ranks, and the `entries` likeliest."""
    positions = prompt_positions(only_choice(answer, sequence), len(sequence))[start:]
    own, ranks, ids_NJ, log_probs_NJ = [], [], [], []
    for position, token in zip(positions, sequence[start:]):
        likeliest = []
        for text, entry in position.items():
            rank, log_prob, token_id = _entry(text, entry)
            if token_id == token:
                own.append(log_prob)
                ranks.append(rank)
            if rank <= entries:
                likeliest.append((rank, token_id, log_prob))
        likeliest.sort()
        if [each[0] for each in likeliest] != list(range(1, entries + 1)) or len(own) != len(ids_NJ) + 1:
            raise Malformed(f"a position lists {len(position)} entries, not a token and the {entries} likeliest")
        ids_NJ.append([each[1] for each in likeliest])
        log_probs_NJ.append([each[2] for each in likeliest])
    shape = (len(own), entries)
    return Listed(np.array(own, np.float64), np.array(ranks, np.int64), np.array(ids_NJ, np.int64).reshape(shape),
                  np.array(log_probs_NJ, np.float64).reshape(shape))


def _entry(text: Any, entry: Any) -> tuple[int, float, int]:
    """(rank, log-prob, token id)."""
    rank, log_prob = (entry.get("rank"), entry.get("logprob")) if isinstance(entry, dict) else (None, None)
    if not text.isascii() or not text.isdigit() or len(text) > 9 or type(rank) is not int or not 0 < rank < 1 << 31:
        raise Malformed("an entry without a token id or a rank")
    if type(log_prob) not in (float, int) or not LEAST <= log_prob <= LARGEST:
        raise Malformed(f"a log-prob of {log_prob if type(log_prob) in (float, int) else 'no number'}")
    return rank, float(log_prob), int(text)


def _next_log_probs(answer: dict, prefix: list[int], ids: list[int]) -> np.ndarray:
    """Log-probs of `ids` at the one generated position; -9999, which stands for -inf, is let through."""
    logprobs = only_choice(answer, prefix).get("logprobs")
    top = logprobs.get("top_logprobs") if isinstance(logprobs, dict) else None
    entries = top[0] if isinstance(top, list) and len(top) == 1 and isinstance(top[0], dict) else {}
    values = [entries.get(f"token_id:{each}") for each in ids]
    if not all(type(each) in (float, int) and -1e4 <= each <= LARGEST for each in values):
        raise Malformed("it lacks log-probs of ids that were asked for")
    return np.array(values, np.float64)
