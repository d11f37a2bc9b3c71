"""TensorBoard: one folder per run, one event file per round, under a name of its own.

A file appears whole or not at all, so feeding a round again finds it there, and rounds fed in any order are read in
theirs: TensorBoard reads the files of a folder in the order of their names. Records are written with tensorboard's own
RecordWriter: torch.utils.tensorboard would import torch (1.4 s against .3 s, and 300 MB) and picks the file's name.
"""

import json
import os
import time
import uuid
from pathlib import Path

from pipeline.config.trackers import TensorBoard
from pipeline.track.interface import Points, Run


class EventFiles:
    """A folder of event files."""

    def __init__(self, settings: TensorBoard):
        import tensorboard.compat.proto  # noqa: F401  (is it here?)

        self._root = Path(settings.folder)

    def open(self, run: Run) -> int:
        self._folder = self._root / run.key
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "events.out.tfevents.0000000000.config"
        if not config.exists():
            self._put(config, [config_event(run)])
        number = 0
        while self._file(number).exists():
            number += 1
        return number

    def log(self, number: int, points: Points) -> None:
        self._put(self._file(number), [scalars_event(step, values) for step, values in points])

    def close(self) -> None:
        pass

    def _file(self, number: int) -> Path:
        return self._folder / f"events.out.tfevents.{number + 1:010d}.round"

    def _put(self, file: Path, events: list) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        temporary = self._folder / f".tmp-{uuid.uuid4().hex}"  # TensorBoard reads what has "tfevents" in its name
        try:
            with open(temporary, "wb") as file_object:
                writer = RecordWriter(file_object)
                for event in [Event(wall_time=time.time(), file_version="brain.Event:2"), *events]:
                    writer.write(event.SerializeToString())
                writer.flush()
                os.fsync(file_object.fileno())
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)


def scalars_event(step: int, values: dict[str, float]):
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    return Event(wall_time=time.time(), step=step, summary=Summary(value=scalars))


def config_event(run: Run):
    """The config in TensorBoard's text tab, as an indented block: nothing in it is taken for Markdown."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    lines = json.dumps({"run": run.name, "tags": run.tags, "config": run.config}, indent=2).splitlines()
    text = "\n".join("    " + line for line in lines)
    plugin = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    value = Summary.Value(tag="config", metadata=plugin,
                          tensor=TensorProto(dtype=DT_STRING, string_val=[text.encode()]))
    return Event(wall_time=time.time(), step=0, summary=Summary(value=[value]))
