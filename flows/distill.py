"""A run as a Prefect flow: start it or find it, then play its rounds one after the other.

    from flows.distill import distill
    distill(load_config(Path("examples/gsm8k.toml")))

Deployed, it takes the config as its parameter; a flow run that was killed is run again and resumes from the store.
"""

from prefect import flow, get_run_logger

from flows.child import Child
from flows.order import next_round
from flows.round import distill_round, progress_to_log
from pipeline.config import RunConfig


@flow(name="opd-distill", flow_run_name="distill {config.run}", persist_result=False)
def distill(config: RunConfig) -> dict:
    """Play every round of `config` that is not committed. Returns the committed rounds' manifest ids."""
    with Child() as child:
        child.call("start", progress_to_log(), config=config.model_dump(mode="json"))
    played = []
    while (number := next_round(config.store, config.run, config.rounds)) is not None:
        played.append(distill_round(config.store, config.run, number))
    get_run_logger().info("%s: %s rounds committed, %s now", config.run, config.rounds, len(played))
    return {"run": config.run, "played": played}
