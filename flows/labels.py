"""What a flow run says of itself in Prefect: its tags, its resolved parameters, and a user's mistake as one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from storage.errors import IntegrityError, UserError

PLAIN = {"persist_result": False, "result_serializer": "json"}
"""For every flow and task: results stay in the process, and the exceptions that Prefect stores anyway are JSON."""


def run_tags(run: str, number: int | None = None) -> list[str]:
    """Tags of everything that belongs to a run, or to one round of it."""
    return ["opd", f"run:{run}"] + ([] if number is None else [f"round:{number}"])


@contextmanager
def labelled(tags: list[str], **parameters) -> Iterator[None]:
    """Tag this flow run and what it starts; write `parameters` as resolved in it, so that it can be run again as it is,
    whatever defaults a later version has."""
    from prefect import tags as tagged
    from prefect.client.orchestration import get_client
    from prefect.context import get_run_context

    flow_run = get_run_context().flow_run
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, tags=sorted({*flow_run.tags, *tags}),
                               parameters={**flow_run.parameters, **parameters} if parameters else None)
    with tagged(*tags):
        yield


def refused(error: UserError | IntegrityError):
    """The failed state of a flow run whose user can mend it: its message is the error's line, no traceback is logged.
    """
    from prefect.states import Failed

    return Failed(message=str(error), data=error)
