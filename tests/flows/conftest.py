"""One real Prefect server for the session, hardened as `opd doctor` asks, with prefect.yaml deployed on it."""

import pytest

from tests.flows.prefect_server import hardened, prefect_server


@pytest.fixture(scope="session")
def prefect(tmp_path_factory):
    with prefect_server(tmp_path_factory.mktemp("prefect"), **hardened()) as server:
        fixed = server.opd("doctor", "--fix")
        assert fixed.returncode == 0, fixed.stdout + fixed.stderr
        server.prefect("work-pool", "create", "opd", "--type", "process")
        server.prefect("deploy", "--all", "--no-prompt")
        yield server
