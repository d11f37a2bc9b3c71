"""The inside of a process that holds an engine: calls come through its socket, each is answered by `done` or `error`.

    {"call": "open", "arguments": {...}}    load the weights of a folder; answers what runs
    any other call                          a method of what was opened: with arrays, if it takes some

The process ends at once when the other side of the socket does, and ignores Ctrl-C: its parent decides.
"""

import inspect
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import numpy as np

from pipeline.vllm.messages import Arrays, receive, send

LINE = 400
"""Characters of an error that are passed on."""


def main(opened: Callable) -> None:
    """Serve on the socket that the command line names; `opened(pipe, **arguments)` makes what answers calls."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(Connection(int(sys.argv[1])), opened)


def serve(pipe: Connection, opened: Callable) -> None:
    """Answer calls until the other side is gone."""
    served = None
    for header, arrays in _calls(pipe):
        try:
            if header["call"] == "open":
                served = opened(pipe, **header["arguments"])
                send(pipe, {"done": served.ready})
            else:
                send(pipe, {"done": {}}, **_answer(getattr(served, header["call"]), arrays, header["arguments"]))
        except Exception as error:  # everything is told to the parent, which ends this process
            send(pipe, {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:LINE]})


def outputs(engine, pipe: Connection, first: int, prompts: list[list[int]], asked: list) -> list:
    """What the engine answers to each prompt with its SamplingParams, in order; requests are numbered from `first`."""
    from vllm.sampling_params import RequestOutputKind

    for i, (prompt, each) in enumerate(zip(prompts, asked, strict=True)):
        each.output_kind = RequestOutputKind.FINAL_ONLY
        engine.add_request(str(first + i), {"prompt_token_ids": prompt}, each)
    found: dict[int, object] = {}
    while engine.has_unfinished_requests():
        finished = {int(each.request_id) - first: each for each in engine.step() if each.finished}
        found |= finished
        if finished:
            send(pipe, {"progress": len(found)})
    return [found[i] for i in range(len(prompts))]


def split(flat: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    """A flat array as lists of these lengths."""
    return [part.tolist() for part in np.split(flat, np.cumsum(lengths)[:-1])]


def _answer(method: Callable, arrays: Arrays, arguments: dict) -> Arrays:
    takes_arrays = "arrays" in inspect.signature(method).parameters
    return (method(arrays, **arguments) if takes_arrays else method(**arguments)) or {}


def _calls(pipe: Connection) -> Iterator[tuple[dict, Arrays]]:
    """Calls from the pipe; a thread of its own ends the process when the parent is gone."""
    calls = queue.SimpleQueue()

    def read():
        try:
            while True:
                calls.put(receive(pipe))
        except (EOFError, OSError):
            os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield calls.get()
