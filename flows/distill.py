"""A run as a Prefect flow: start it or find it, then play its rounds one after the other.

    from flows.distill import distill
    if __name__ == "__main__":  # stages are child processes, which import the script that started them
        distill(load_config(Path("examples/gsm8k.toml")))

Deployed, it takes the config as its parameter; a flow run that was killed is run again and resumes from the store. It
waits while another flow run plays the same run; for schedules there is flows/tick.py, which refuses.
"""

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from flows import limits
from flows.artifacts import attempt
from flows.child import Child
from flows.labels import PLAIN, label, refused, run_tags
from flows.order import next_round
from flows.round import nested_round
from flows.team import gathered
from pipeline.config import RunConfig
from pipeline.context import silent
from storage.errors import IntegrityError, UserError


@flow(name="opd-distill", flow_run_name="distill {config.run}", **PLAIN)
def distill(config: RunConfig, leave_training: bool = False) -> dict:
    """Play every round of a run that is not committed.

    Args:
        config: The whole run. Keys that are left out have their defaults, and are written into the flow run.
        leave_training: Stop where a round's training is due, for `torchrun` over several machines to do it.
    """
    plain = config.model_dump(mode="json")
    try:
        label(run_tags(config.run), config=plain)
        with limits.playing(config.store, config.run, wait=True), gathered(config.workers):
            start(plain, here=config.workers.pool is None)
            played = []
            while (number := next_round(config.store, config.run, config.rounds)) is not None:
                done = nested_round(config, number, leave_training)
                if done["manifest"] is None:
                    return Completed(message=f"Training of round {number} is due", data={
                        "run": config.run, "played": played, "training_due": number})
                played.append(done)
                played[-1] |= show_in_trackers(config, number)
    except (UserError, IntegrityError) as error:
        return refused(error)
    return Completed(message=f"All {config.rounds} rounds of {config.run} are committed, {len(played)} of them now",
                     data={"run": config.run, "played": played})


def start(config: dict, here: bool) -> None:
    """Start the run, or find it. `here`: this machine is to play it."""
    with Child() as child:
        child.call("start", silent, config=config, here=here)


def show_in_trackers(config: RunConfig, number: int) -> dict:
    """Show the rounds up to a committed one in the config's trackers: {"trackers": what each said}, {} without any.

    None of them can fail a round.
    """
    if not config.tracker:
        return {}
    where = {"store": config.store, "run": config.run, "number": number}
    shown = track_round(where, [each.model_dump(mode="json") for each in config.tracker])
    return {"trackers": shown} if shown else {}


@task(name="track", task_run_name="track {where[number]}", cache_policy=NO_CACHE, **PLAIN)
def track_round(where: dict, trackers: list[dict]) -> dict | None:
    """Feed the trackers; what one does not get now, the next round or `opd track` brings."""
    with Child() as child:
        shown = attempt("the round", lambda: child.call("track", silent, trackers=trackers, **where))
    get_run_logger().info("trackers: %s", shown)
    return shown
