"""`opd serve CONFIG --cron "0 2 * * *"`: play one round of a run at each tick, on this machine, until Ctrl-C."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from flows.commands.options import verb
from storage.errors import UserError


def add(verbs) -> None:
    parser = verb(verbs, "serve", run, "Serve a run as a Prefect deployment: each tick plays one round.")
    parser.add_argument("config", type=Path, help="a .toml file")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="change one key; may be repeated")
    parser.add_argument("--cron", help="when to tick, such as '0 2 * * *' (default: only when a flow run is asked for)")
    parser.add_argument("--timezone", metavar="ZONE", help="of --cron, such as Europe/Zurich (default: UTC)")
    parser.add_argument("--name", help="of the deployment (default: the run's id)")


def run(arguments) -> int:
    from flows.api import server_url
    from pipeline.config import load_config

    config = load_config(arguments.config, arguments.set)
    url = server_url()
    if not url:
        raise UserError("opd serve needs a Prefect server: start one with `prefect server start`, then set "
                        "PREFECT_API_URL=http://127.0.0.1:4200/api")
    from flows.deployments import tick_deployment

    name = arguments.name or config.run
    deployment = tick_deployment(config, name, arguments.cron, arguments.timezone)
    when = f"at {arguments.cron!r} {arguments.timezone or 'UTC'}" if arguments.cron else "when asked to"
    serve(deployment, url, [f"serving opd-tick/{name}: {config.run} plays one round {when}",
                            f"now: prefect deployment run 'opd-tick/{name}'"])
    return 0


def serve(deployment, url: str, lines: list[str]) -> None:
    """Register the deployment, say so, and play its flow runs until Ctrl-C. Raises UserError if nothing answers."""
    import asyncio

    import httpx
    from prefect.runner import Runner

    from flows.server_checks import own_origin, shown
    from flows.tick import SERVED

    runner = Runner(pause_on_shutdown=True, limit=1)
    try:
        identity = runner.add_deployment(deployment)
    except httpx.ConnectError:
        raise UserError(f"the Prefect server {shown(url)} does not answer: start it with `prefect server "
                        "start`") from None
    os.environ[SERVED] = "1"  # flow runs inherit it
    said = [*lines, f"watch: {own_origin(url)}/deployments/deployment/{identity}",
            "stop: Ctrl-C; the schedule is paused, and the next `opd serve` goes on"]
    asyncio.run(play_until_signalled(runner, lambda: print(*said, sep="\n", flush=True)))


async def play_until_signalled(runner, say: Callable[[], None]) -> None:
    """Run the runner, `say` so, and at SIGINT or SIGTERM cancel its flow runs and wait for them.

    Left to itself it is cancelled, and kills them: they would stay Running, and hold their limits until the leases end.
    """
    import asyncio

    loop, signalled = asyncio.get_running_loop(), asyncio.Event()
    playing = asyncio.create_task(runner.start())
    await asyncio.sleep(0)  # it takes SIGTERM for itself as it starts
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signalled.set)
    while not (runner.started or playing.done()):
        await asyncio.sleep(0.05)
    say()
    stop = asyncio.create_task(signalled.wait())
    await asyncio.wait({playing, stop}, return_when=asyncio.FIRST_COMPLETED)
    if signalled.is_set():
        await runner.astop()
    stop.cancel()
    await playing
