import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CONTENT: dict[str, Any] = yaml.safe_load((ROOT / "prefect.yaml").read_text())


def flow_of(deployment: dict[str, Any]) -> Any:
    import importlib

    path, name = deployment["entrypoint"].split(":")
    return getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)


@pytest.mark.parametrize("deployment", CONTENT["deployments"], ids=lambda one: str(one["name"]))
def test_deployments_name_flows_and_all_their_parameters(deployment: dict[str, Any]) -> None:
    from prefect.client.schemas.schedules import CronSchedule

    flow = flow_of(deployment)
    knobs = inspect.signature(flow.fn).parameters
    assert deployment["parameters"] == {name: knob.default for name, knob in knobs.items()}
    assert all(name in flow.fn.__doc__ for name in knobs)
    for schedule in deployment["schedules"]:
        CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
        assert schedule["active"] is False, "a schedule that spends somebody's GPU is started by a person"
    assert deployment["concurrency_limit"]["limit"] == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_prefect_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.client.orchestration import get_client
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120), get_client(sync_client=True) as client:
        monkeypatch.setenv("PREFECT_API_URL", str(client.api_url))
        for words in (["work-pool", "create", "local", "--type", "process"], ["--no-prompt", "deploy", "--all"]):
            done = subprocess.run([sys.executable, "-m", "prefect", *words], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
        found = client.read_deployment_by_name("retrain/weekly")
        assert [one.active for one in found.schedules] == [False]
        assert found.parameter_openapi_schema["properties"].keys() == {"registry", "force", "max_parallel"}
