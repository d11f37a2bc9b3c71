"""[workers]: on how many devices and machines a run is played. Not part of the run's identity, and not recorded in
run.json: the same run may be played by one worker today and by eight tomorrow."""

from pydantic import Field, model_validator

from pipeline.config.section import Positive, Section


class Workers(Section):
    """Who computes the shards of a stage."""

    processes: Positive | None = None
    """Processes that compute shards side by side, each on a GPU of its own (an engine with tensor_parallel = n: on n of
    them); null: as many as the visible GPUs allow, one on a CPU. In a pool: on each worker's machine."""
    stream: bool = True
    """With several processes a shard is scored while others are still being written: none of them idles until the last
    rollout is there. One process goes stage by stage, so that models need not share its device."""
    pool: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,99}$")
    """Prefect work pool whose workers compute rollouts, scores, continuations and answers; null: whoever plays the run
    computes them. Its workers see the same store. Prompts, masks and training stay with who plays the run."""
    pool_jobs: Positive = 2
    """Flow runs that the pool is asked for at once: as many as it has workers. Each takes shards until none is left."""
    lease_s: Positive = 60
    """Seconds without a sign of life after which a worker's shard is taken by another, in a pool."""

    @model_validator(mode="after")
    def _lease_is_renewed_in_time(self):
        if self.lease_s < 5:
            raise ValueError(f"workers.lease_s = {self.lease_s} is shorter than a worker needs to show that it lives: "
                             "use 5 or more")
        return self
