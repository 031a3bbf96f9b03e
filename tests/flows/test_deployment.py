import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CONTENT: dict[str, Any] = yaml.safe_load((ROOT / "prefect.yaml").read_text())


def load_flow(deployment: dict[str, Any]) -> Any:
    import importlib

    path, name = deployment["entrypoint"].split(":")
    return getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)


@pytest.mark.parametrize("deployment", CONTENT["deployments"], ids=lambda deployment: str(deployment["name"]))
def test_deployments_name_flows_and_all_their_parameters(deployment: dict[str, Any]) -> None:
    from prefect.client.schemas.schedules import CronSchedule

    flow = load_flow(deployment)
    parameters = inspect.signature(flow.fn).parameters
    assert deployment["parameters"] == {name: parameter.default for name, parameter in parameters.items()}
    assert all(name in flow.fn.__doc__ for name in parameters)
    for schedule in deployment["schedules"]:
        CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
        assert schedule["active"] is False, "a schedule that spends somebody's GPU is started by a person"
    assert deployment["concurrency_limit"]["limit"] == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("prefect")
def test_prefect_accepts_the_deployments(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.client.orchestration import get_client

    monkeypatch.setenv("PREFECT_API_URL", server_url)
    for words in (["work-pool", "create", "local", "--type", "process"], ["--no-prompt", "deploy", "--all"]):
        process = subprocess.run([sys.executable, "-m", "prefect", *words], cwd=ROOT, capture_output=True, text=True)
        assert process.returncode == 0, process.stdout + process.stderr
    with get_client(sync_client=True) as client:
        weekly = client.read_deployment_by_name("retrain/weekly")
    assert [schedule.active for schedule in weekly.schedules] == [False]
    assert weekly.parameter_openapi_schema["properties"].keys() == {"registry", "force", "max_parallel"}
