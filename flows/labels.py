"""What a flow run says of itself in Prefect: its tags, its resolved parameters, and a user's mistake as one line.

Task runs have no tags: for each one that has some the server is asked for a limit of that name, and a server on SQLite
is so often busy then that a round of tiny models took 6 s instead of 2 (benchmarks/rounds.py). A task run is found by
its flow run's tags and by its own name, "score 7".
"""

from flows.api import client
from storage.errors import IntegrityError, UserError

PLAIN = {"persist_result": False, "result_serializer": "json"}
"""For every flow and task: results stay in the process, and the exceptions that Prefect stores anyway are JSON."""


def run_tags(run: str, number: int | None = None) -> list[str]:
    """Tags of the flow runs that belong to a run, or to one round of it."""
    return ["opd", f"run:{run}"] + ([] if number is None else [f"round:{number}"])


def label(tags: list[str], **parameters) -> None:
    """Tag this flow run, and write `parameters` as resolved in it, so that it can be run again as it is, whatever
    defaults a later version has."""
    from prefect.context import get_run_context

    flow_run = get_run_context().flow_run
    with client() as api:
        api.update_flow_run(flow_run.id, tags=sorted({*flow_run.tags, *tags}),
                            parameters={**flow_run.parameters, **parameters} if parameters else None)


def refused(error: UserError | IntegrityError):
    """The failed state of a flow run whose user can mend it: its message is the error's line, no traceback is logged.
    """
    from prefect.states import Failed

    return Failed(message=str(error), data=error)
