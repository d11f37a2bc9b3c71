"""What the client makes of servers that fail, refuse, or say what cannot be right; each is a real socket."""

import threading
import time

import numpy as np
import pytest

from pipeline.config.engines import VllmServer
from pipeline.rollout.engine import Sampling
from pipeline.rollout.server_answers import Malformed, read_completion, read_prompt_log_probs
from pipeline.vllm import client as vllm_client
from pipeline.vllm.client import VllmClient
from storage.errors import UserError
from tests.served.raw_server import answer, saying

PROMPT, SAMPLING = [5, 6, 7], Sampling(1.0, 1.0, 4, 100, (2,))
GOOD = {"index": 0, "text": "", "finish_reason": "stop", "token_ids": [9, 8, 2], "prompt_token_ids": PROMPT,
        "logprobs": {"token_logprobs": [-0.5, -1.0, -0.25]}}


def client(url, **changes):
    return VllmClient(VllmServer(url=url, model="m", **changes), "teacher server")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(vllm_client, "FIRST_PAUSE_S", 0.01)


def test_a_request_is_sent_again_after_errors_that_pass():
    replies = [answer({"error": "busy"}, "503 Service Unavailable"), None, answer({}, "429 Too Many Requests"),
               b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf", answer({"version": "0.32.0"})]
    with saying(lambda number, *_: replies[number]) as (url, log):
        assert client(url, timeout_s=1.0).version() == "0.32.0"
    assert [each for each, _ in log] == ["GET /version"] * 5


def test_after_the_last_try_one_line_says_which_server_and_what_to_do():
    broken = answer({"error": {"message": "engine\x1b dead"}}, "500 Internal Server Error")
    with saying(lambda *_: broken) as (url, log):
        with pytest.raises(UserError, match="teacher server http.*does not answer.*engine.*3 times.*goes on") as caught:
            client(url, retries=2).version()
    assert len(log) == 3 and "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_a_server_that_is_not_there_is_one_line():
    with saying(lambda *_: None) as (url, _):
        pass
    with pytest.raises(UserError, match="does not answer"):
        client(url, retries=1).version()


def test_a_server_that_never_answers_runs_into_the_timeout():
    with saying(lambda *_: time.sleep(2)) as (url, _):
        with pytest.raises(UserError, match="timed out"):
            client(url, retries=0, timeout_s=0.2).version()


def test_a_refusal_is_final_and_ends_all_requests():
    refused = answer({"error": {"message": "Requested prompt logprobs of 33, which is greater than max allowed: 20"}},
                     "400 Bad Request")
    with saying(lambda *_: refused) as (url, log):
        with pytest.raises(UserError, match="larger --max-logprobs"):
            client(url, concurrency=2).complete([{"prompt": [i]} for i in range(100)], lambda index, said: said)
    assert len(log) < 20


@pytest.mark.parametrize(("status", "env", "words"), [
    ("401 Unauthorized", None, "wants an API key"),
    ("401 Unauthorized", "OPD_TEST_SERVER_KEY", "does not accept the key"),
    ("302 Found", None, "status 302"), ("404 Not Found", None, "check `model` and `url`")])
def test_other_refusals_say_what_to_do(status, env, words):
    with saying(lambda *_: answer({"error": "no"}, status, "Location: http://127.0.0.1:9/")) as (url, log):
        with pytest.raises(UserError, match=words):
            client(url, api_key_env=env).version()
    assert len(log) == 1


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b"[" * 100_000, b"\xff\xfe", b'{"version": 7}', b"{}"])
def test_an_answer_that_is_no_json_object_is_refused(body):
    with saying(lambda *_: answer(body)) as (url, _):
        with pytest.raises(UserError, match="teacher server"):
            client(url).version()


def test_an_answer_without_end_is_not_read_into_memory(monkeypatch):
    monkeypatch.setattr(vllm_client, "MAX_ANSWER_BYTES", 1000)
    with saying(lambda *_: answer(b'{"version": "' + b"x" * 5000 + b'"}')) as (url, _):
        with pytest.raises(UserError, match="more than"):
            client(url).version()


def test_no_more_requests_than_agreed_are_in_flight():
    now, most, lock = [0], [0], threading.Lock()

    def reply(*_):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return answer({"choices": []})

    with saying(reply) as (url, log):
        client(url, concurrency=3).complete([{}] * 20, lambda index, said: index)
    assert len(log) == 20 and 1 < most[0] <= 3


def test_an_interruption_does_not_wait_for_answers():
    def interrupt(done):
        raise KeyboardInterrupt

    with saying(lambda number, *_: answer({}) if number == 0 else time.sleep(20)) as (url, _):
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            client(url, concurrency=4, timeout_s=20.0).complete([{}] * 8, lambda index, said: said, interrupt)
    assert time.monotonic() - began < 5


def test_the_key_comes_from_the_environment_and_is_never_shown(monkeypatch):
    monkeypatch.delenv("OPD_TEST_SERVER_KEY")
    with pytest.raises(UserError, match="OPD_TEST_SERVER_KEY.*is not set"):
        client("http://h:1", api_key_env="OPD_TEST_SERVER_KEY")
    monkeypatch.setenv("OPD_TEST_SERVER_KEY", "se\nsame")
    with pytest.raises(UserError) as caught:
        client("http://h:1", api_key_env="OPD_TEST_SERVER_KEY")
    assert "same" not in str(caught.value).replace("OPD_TEST_SERVER_KEY", "")


def test_an_address_may_come_from_the_environment(monkeypatch):
    with pytest.raises(UserError, match="OPD_TEST_URL is not set"):
        client("$OPD_TEST_URL")
    monkeypatch.setenv("OPD_TEST_URL", "http://u:p@h")
    with pytest.raises(UserError, match="user or a password"):
        client("$OPD_TEST_URL")
    monkeypatch.setenv("OPD_TEST_URL", "http://h:8000/v1/")
    assert client("$OPD_TEST_URL").url == "http://h:8000"


@pytest.mark.parametrize("url", ["h:8000", "ftp://h", "http://", "http://h:99999", "http://u:p@h", "http://h/?a=1", "$",
                                 "$1", "http://h/\u00fc", "http://h/a b", "http://h/a\u200b"])
def test_an_address_that_is_none_is_refused_by_the_config(url):
    with pytest.raises(ValueError, match="url"):
        VllmServer(url=url, model="m")


def test_a_rollout_is_read():
    drawn = read_completion({"choices": [GOOD]}, PROMPT, SAMPLING)
    assert drawn.token_ids.tolist() == [9, 8, 2] and drawn.finish_reason == "stop"
    assert np.array_equal(drawn.log_probs, np.float32([-0.5, -1.0, -0.25]))


@pytest.mark.parametrize("change", [
    {"token_ids": [9, 8, 100]}, {"token_ids": [9, -1, 2]}, {"token_ids": []}, {"token_ids": [9, 8, 7, 6, 5]},
    {"token_ids": [True, 8, 2]}, {"token_ids": ["9", 8, 2]}, {"token_ids": None}, {"token_ids": [9, 2, 2]},
    {"prompt_token_ids": [5, 6]}, {"prompt_token_ids": None}, {"logprobs": None},
    {"logprobs": {"token_logprobs": [-0.5, -1.0]}}, {"logprobs": {"token_logprobs": [-0.5, None, -1.0]}},
    {"logprobs": {"token_logprobs": [-0.5, 0.5, -1.0]}}, {"logprobs": {"token_logprobs": [-0.5, -9999.0, -1.0]}},
    {"logprobs": {"token_logprobs": [-0.5, float("nan"), -1.0]}}, {"logprobs": {"token_logprobs": "abc"}},
    {"token_ids": [9, 8, 7]}, {"token_ids": [9, 8, 7], "finish_reason": "length"},
    {"token_ids": [9, 8, 7], "finish_reason": {"a": 1}}])
def test_a_rollout_that_cannot_be_right_is_refused(change):
    with pytest.raises(Malformed):
        read_completion({"choices": [GOOD | change]}, PROMPT, SAMPLING)


@pytest.mark.parametrize("choices", [None, [], [GOOD, GOOD], ["x"], {"0": GOOD}])
def test_an_answer_without_exactly_one_choice_is_refused(choices):
    with pytest.raises(Malformed):
        read_completion({"choices": choices}, PROMPT, SAMPLING)


@pytest.mark.parametrize("listed", [
    None, [None], [None, {"6": {"logprob": -1.0}}, {}], [None, {"6": {"logprob": -1.0}}, {"8": {"logprob": -1.0}}],
    [None, {"6": {"logprob": -1.0}}, {"7": -1.0}], [{"5": {"logprob": 0.0}}, {"6": {"logprob": -1.0}}, {"7": None}]])
def test_prompt_log_probs_that_cannot_be_right_are_refused(listed):
    with pytest.raises(Malformed):
        read_prompt_log_probs({"choices": [{"prompt_token_ids": PROMPT, "prompt_logprobs": listed}]}, PROMPT, 1)
