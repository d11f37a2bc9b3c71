"""The tick as a deployment: one at a time, a later one cancelled, and the whole resolved config as its parameter."""

from pipeline.config import RunConfig
from pipeline.config.paths import absolute
from storage.errors import UserError


def tick_deployment(config: RunConfig, name: str, cron: str | None, timezone: str | None):
    """The deployment `opd-tick/NAME` of `config`. Raises UserError for a schedule that is none."""
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.types.entrypoint import EntrypointType

    from flows.labels import run_tags
    from flows.tick import tick

    one = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    return tick.to_deployment(
        name, parameters={"config": absolute(config.model_dump(mode="json"))}, tags=run_tags(config.run),
        schedule=schedule(cron, timezone), paused=False, concurrency_limit=one,
        entrypoint_type=EntrypointType.MODULE_PATH)


def schedule(cron: str | None, timezone: str | None):
    """A Prefect schedule, None without `cron`. Raises UserError for what is no cron string or no time zone."""
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    from prefect.schedules import Cron

    if cron is None:
        if timezone is not None:
            raise UserError("--timezone says how to read --cron, which is not there: add it, or drop --timezone")
        return None
    try:
        ZoneInfo(timezone or "UTC")
    except (ZoneInfoNotFoundError, ValueError, IsADirectoryError):
        raise UserError(f"--timezone {timezone!r} is not a time zone: use a name like Europe/Zurich") from None
    try:
        return Cron(cron, timezone=timezone)
    except ValueError:
        raise UserError(f"--cron {cron!r} is not a cron string: use five fields, such as '0 2 * * *' for 2:00 every "
                        "night") from None
