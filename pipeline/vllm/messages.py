"""What goes through the pipe to an engine's process and back: a JSON header, then the raw bytes of NumPy arrays.

    send(pipe, {"call": "generate", ...}, token_ids=..., offsets=...)
    header, arrays = receive(pipe)

No pickle: a message can hold numbers and text, and nothing that runs.
"""

import json
from collections.abc import Sequence
from multiprocessing.connection import Connection

import numpy as np

Arrays = dict[str, np.ndarray]
_LENGTH_BYTES = 8


def send(pipe: Connection, header: dict, **arrays: np.ndarray) -> None:
    """Send one message; arrays are one-dimensional."""
    shapes = [[name, str(each.dtype), len(each)] for name, each in arrays.items()]
    head = json.dumps([header, shapes]).encode()
    body = b"".join(np.ascontiguousarray(each).tobytes() for each in arrays.values())
    pipe.send_bytes(len(head).to_bytes(_LENGTH_BYTES, "little") + head + body)


def flat(values: str, lengths: str, lists: Sequence) -> Arrays:
    """Lists of token ids as two arrays with these names: all ids, and how many each list has."""
    return {values: np.concatenate([np.asarray(each, np.int32) for each in lists]),
            lengths: np.array([len(each) for each in lists], np.int64)}


def receive(pipe: Connection) -> tuple[dict, Arrays]:
    """The next message; the arrays are read-only. Raises EOFError once the other side is gone."""
    message = pipe.recv_bytes()
    start = _LENGTH_BYTES + int.from_bytes(message[:_LENGTH_BYTES], "little")
    header, shapes = json.loads(message[_LENGTH_BYTES:start])
    arrays = {}
    for name, dtype, length in shapes:
        arrays[name] = np.frombuffer(message, np.dtype(dtype), length, start)
        start += arrays[name].nbytes
    return header, arrays
