"""Rollouts by a vLLM server that somebody else runs: token ids in, token ids and log-probs out, over HTTP.

    POST /v1/completions {"prompt": [ids], "seed": .., "logprobs": 0, "return_token_ids": true, ...}     one per rollout

Nothing is drawn before the server's weights are proved to be the checkpoint's (server_proof.py). Every request carries
all that decides about sampling, so that no default of the server does; a `cache_salt` of this engine's own, so that a
prefix cache filled by other weights is never read; and a bias of -100 on rows of the head that are no shared token.

Both log-probs are kept, from the server alone. Its `logprobs` are raw, or with `--logprobs-mode processed_logprobs`
those of the density that was drawn from. At temperature 1 and top_p 1 both are one number. Otherwise the server must
give the processed ones, which is found out by asking, and the raw ones come from a second request per rollout,
`prompt_logprobs` over prompt and response: one prefill, without the prefix cache, always raw. Raw ones are normalised
over the server's whole head; what its padded rows carry shows in the proof.
"""

import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.config.engines import VllmServer
from pipeline.config.model import Model
from pipeline.rollout.engine import Generations, OnFinished, Sampling
from pipeline.rollout.server_answers import Malformed, read_completion, read_prompt_log_probs
from pipeline.rollout.server_proof import probe_prompts, prove, refuse_moved, said
from pipeline.vllm.client import VllmClient, prompt_request
from storage.errors import UserError
from storage.weights import read_json

LEAST_TEMPERATURE = 0.01
"""vLLM raises a lower one to this, without saying so."""
MAX_BIASED = 1024
"""Entries that vLLM takes in one logit_bias."""
NEVER = -100.0
"""The least bias that vLLM takes."""
CLAMPED = -9000.0
"""Below it is what the server writes for -inf."""


class ServerEngine:
    """The server of a config, holding the weights in `folder` or refused."""

    def __init__(self, settings: VllmServer, model: Model, folder: Path):
        self.settings, self.model, self.folder = settings, model, folder
        self.client = VllmClient(settings, "rollout server")
        self.client.check_served()
        self.name_and_version = f"vllm server {self.client.version()}"
        self.salt = uuid.uuid4().hex
        self.alive = True
        """Whether the next shard may go on with this engine; else it is opened anew, and proved."""
        self.proof: dict | None = None
        """What server_proof measured."""
        self.processed: bool | None = None
        """Whether the server's log-probs are those of the density; None: not asked yet."""
        if settings.reload == "rpc":
            self._reload()

    def generate(self, prompts: Sequence[np.ndarray], seeds: Sequence[int], sampling: Sampling,
                 on_finished: OnFinished | None = None) -> Generations:
        """See RolloutEngine."""
        prompts = [np.asarray(prompt).tolist() for prompt in prompts]
        _check(sampling)
        plain = sampling.temperature == 1 and sampling.top_p == 1
        self._check_fits(prompts, sampling.max_new_tokens, behind=0 if plain else 1)
        if self.proof is None:
            self._asked = probe_prompts(self.client, prompts)
            self._said = said(self.client, self._asked)
            self.proof = prove(self.client, self.model, self.folder, self._asked, self._said, sampling.vocabulary)
        common = self._request(sampling)
        if not plain:
            self._check_mode(prompts[0], common)
        passes = 1 if plain else 2
        count = _count(on_finished, len(prompts), passes)
        drawn = self.client.complete(
            [common | {"prompt": prompt, "seed": int(seed)} for prompt, seed in zip(prompts, seeds)],
            lambda index, answer: self._checked(read_completion, answer, prompts[index], sampling), count(0))
        raw = [row.log_probs for row in drawn] if plain else self._raw(prompts, drawn, count(1))
        self._check_same_weights()
        return Generations(
            np.cumsum([0, *(len(row.token_ids) for row in drawn)], dtype=np.int64),
            np.concatenate([row.token_ids for row in drawn]), np.concatenate(raw),
            np.concatenate([row.log_probs for row in drawn]), tuple(row.finish_reason for row in drawn))

    def _check_fits(self, prompts: list[list[int]], new: int, behind: int) -> None:
        """`behind`: the token that a request for prompt_logprobs has to ask for."""
        longest = max(map(len, prompts))
        self.client.check_fits(longest + new + behind, f"a prompt of {longest}, {new} new ones" + (
            " and the one that the pass over both asks for" if behind else ""))

    def _check_same_weights(self) -> None:
        """A server that died is asked again once it is back, and may be back with the weights it was started with."""
        try:
            refuse_moved(self.client, self.model.dtype, self._said, said(self.client, self._asked))
        except UserError:
            self.alive = False
            raise

    def _request(self, sampling: Sampling) -> dict:
        """What all requests have in common; nothing is left to the generation config that the server has read."""
        head_rows = _head_rows(self.folder)
        biased = range(sampling.vocabulary, head_rows)
        if len(biased) > MAX_BIASED:
            raise UserError(f"the student's head has {len(biased)} rows beyond the {sampling.vocabulary} shared "
                            f"tokens, a vLLM server takes a bias on {MAX_BIASED}: use another rollout.engine")
        return {"model": self.settings.model, "max_tokens": sampling.max_new_tokens, "n": 1,
                "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0, "min_p": 0.0,
                "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "stop": [],
                "ignore_eos": True, "stop_token_ids": list(sampling.stop_ids), "min_tokens": 0, "logprobs": 0,
                "skip_special_tokens": False, "return_token_ids": True, "return_tokens_as_token_ids": True,
                "cache_salt": self.salt} | ({"logit_bias": {str(each): NEVER for each in biased}} if biased else {})

    def _check_mode(self, prompt: list[int], common: dict) -> None:
        """Refuse a server with raw log-probs: under top_k 1 a processed runner-up has probability 0."""
        if self.processed is None:
            body = common | {"prompt": prompt, "max_tokens": 1, "top_k": 1, "logprobs": 2, "seed": 0}
            top = self.client.complete([body], lambda _, answer: self._checked(_runners_up, answer))[0]
            self.processed = min(top) < CLAMPED
        if not self.processed:
            raise UserError(f"{self.client.name} gives raw log-probs, but rollouts under a temperature or a nucleus "
                            "keep those of the density they were drawn from: start it with --logprobs-mode "
                            "processed_logprobs, or set rollout.temperature = 1 and rollout.top_p = 1")

    def _raw(self, prompts: list[list[int]], drawn: list, on_done) -> list[np.ndarray]:
        """Raw log-probs of the drawn tokens: one prefill each."""
        whole = [prompt + row.token_ids.tolist() for prompt, row in zip(prompts, drawn)]
        return self.client.complete(
            [prompt_request(self.settings.model, tokens, 0) for tokens in whole],
            lambda index, answer: self._checked(read_prompt_log_probs, answer, whole[index], len(prompts[index])),
            on_done)

    def _checked(self, read, *arguments):
        try:
            return read(*arguments)
        except Malformed as error:
            raise self.client.malformed(str(error)) from error

    def _reload(self) -> None:
        """Have the server read the checkpoint's weights. A failed reading leaves vLLM without weights: it says so."""
        path = self.settings.checkpoint_path.replace("{folder}", str(self.folder)).replace(
            "{name}", f"{self.folder.parent.name}/{self.folder.name}")
        try:
            self._take_weights(path)
            self.client.post("/reset_prefix_cache")
        except UserError as error:
            raise UserError(f"{self.client.name} did not read the weights in {path} ({error}): check "
                            "rollout.engine.checkpoint_path, that the server sees that folder, and that it was started "
                            "with VLLM_SERVER_DEV_MODE=1; then restart it, a failed reload leaves it without weights"
                            ) from error

    def _take_weights(self, path: str) -> None:
        """By pipeline/vllm/reload.py where the server has it: on a CPU vLLM's own method forgets a tied head."""
        try:
            self.client.post("/collective_rpc", {"method": "take_weights", "args": [path]})
        except UserError as error:
            if "no attribute 'take_weights'" not in str(error):
                raise
            self.client.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": path}})


def check_server(settings: VllmServer) -> None:
    """Raise UserError unless the server answers, serves the model, and takes the key. Its weights are looked at when a
    round begins."""
    client = VllmClient(settings, "rollout server")
    client.check_served()
    client.version()


def _check(sampling: Sampling) -> None:
    if sampling.temperature < LEAST_TEMPERATURE:
        raise UserError(f"rollout.temperature = {sampling.temperature}: a vLLM server takes none below "
                        f"{LEAST_TEMPERATURE}; for greedy decoding lower `top_p`")


def _head_rows(folder: Path) -> int:
    config = read_json(folder / "config.json")
    return (config.get("text_config") or config).get("vocab_size") or 0


def _runners_up(answer: dict) -> list[float]:
    """The log-probs of the likeliest tokens at the one position."""
    try:
        values = list(answer["choices"][0]["logprobs"]["top_logprobs"][0].values())
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Malformed("it lacks the log-probs asked for") from error
    if len(values) < 2 or not all(isinstance(each, int | float) for each in values):
        raise Malformed("it has fewer log-probs than asked for")
    return values


def _count(on_finished: OnFinished | None, total: int, passes: int):
    """Progress of each pass as a share of the rollouts."""
    def of_pass(number: int):
        return lambda done: on_finished and on_finished((number * total + done) // passes, total)
    return of_pass
