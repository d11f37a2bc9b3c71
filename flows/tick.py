"""One scheduled tick as a Prefect flow: it plays one round.

A tick resumes the round that is unfinished, else starts the next; does nothing when the planned rounds are done; and
refuses to overlap. Deployed with a concurrency limit of 1 and the strategy CANCEL_NEW, a tick of the same deployment is
cancelled by the server; a tick that starts while anything else plays the same run is refused here. Both end as
Cancelled with one line. A tick that was SIGKILLed is in the way of later ones for 5 minutes at most, until the server
ends its lease on the deployment. `opd serve` and prefect.yaml deploy this flow.
"""

import os
import signal

from prefect import flow
from prefect.states import Cancelled, Completed, State

from flows import limits
from flows.distill import show_in_trackers, start
from flows.labels import PLAIN, label, refused, run_tags
from flows.order import next_round
from flows.round import nested_round
from pipeline.config import RunConfig
from storage.errors import IntegrityError, UserError

SERVED = "OPD_SERVED"
"""Set in the environment of ticks that `opd serve` starts. Ctrl-C in its terminal reaches them too: they leave it to
their runner to end them, once."""


@flow(name="opd-tick", flow_run_name="tick {config.run}", **PLAIN)
def tick(config: RunConfig) -> dict:
    """Play the next round of a run: resume the unfinished one, else start one, or do nothing when all are done.

    Args:
        config: The whole run. Keys that are left out have their defaults, and are written into the flow run.
    """
    if os.environ.get(SERVED):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    plain = config.model_dump(mode="json")
    try:
        label(run_tags(config.run), config=plain)
        with limits.playing(config.store, config.run, wait=False):
            start(plain, here=config.workers.pool is None)
            return _play_next(config)
    except limits.Busy:
        return Cancelled(name="Refused", message=f"{config.run} is being played by another flow run, or by one that "
                                                 "was killed a minute ago: this tick did nothing")
    except (UserError, IntegrityError) as error:
        return refused(error)


def _play_next(config: RunConfig) -> State:
    number = next_round(config.store, config.run, config.rounds)
    if number is None:
        return Completed(message=f"All {config.rounds} rounds of {config.run} are committed: nothing to do",
                         data={"run": config.run, "played": []})
    played = nested_round(config, number)
    played |= show_in_trackers(config, number)
    return Completed(message=f"Round {number} of {config.run} is committed ({played['manifest'][:12]}): "
                             f"{config.rounds - number - 1} of {config.rounds} rounds are left",
                     data={"run": config.run, "played": [played]})
