import asyncio
import inspect
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from emuedit.operations.health import prefect_checks
from emuedit.operations.servers import server_stack
from flows import server_setup
from flows.run_reason import complete_reason

ROOT = Path(__file__).resolve().parents[2]
FILES = ("prefect.yaml", "infra/k8s/prefect.yaml")
DEPLOYMENTS: list[dict[str, Any]] = [
    deployment for file in FILES for deployment in yaml.safe_load((ROOT / file).read_text())["deployments"]
]


def load_flow(deployment: dict[str, Any]) -> Any:
    import importlib

    path, name = deployment["entrypoint"].split(":")
    return getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: str(deployment["name"]))
def test_deployments_name_flows_and_parameters_that_exist(deployment: dict[str, Any]) -> None:
    from prefect.client.schemas.schedules import CronSchedule

    flow = load_flow(deployment)
    parameters = inspect.signature(flow.fn).parameters
    assert deployment.get("parameters", {}).keys() <= parameters.keys()
    assert all(name in flow.fn.__doc__ for name in parameters)
    if reason := deployment.get("parameters", {}).get("reason"):
        assert complete_reason(reason) == reason
    for schedule in deployment.get("schedules", ()):
        CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
        assert schedule["active"] is False, "a schedule that spends somebody's GPU is started by a person"


def test_flows_that_write_to_the_workspace_run_one_at_a_time(tmp_path: Path) -> None:
    unlimited = {deployment["name"] for deployment in DEPLOYMENTS if "concurrency_limit" not in deployment}
    assert unlimited == {"champion"}, "a rollback waits for nothing"
    queues = {deployment["name"]: deployment["work_pool"].get("work_queue_name") for deployment in DEPLOYMENTS}
    assert {name for name, queue in queues.items() if queue} == {"champion"}
    assert queues["champion"] == server_setup.QUEUE
    compose = yaml.safe_load((ROOT / "infra/compose.yaml").read_text())["services"]["worker"]["command"]
    layout = server_stack.StackLayout(tmp_path, dict.fromkeys(server_stack.NAMES, 1), None)
    for command in (compose, server_stack._worker(layout).command.arguments):
        assert command[command.index("--limit") + 1] == "2", "want room for a rollback beside a training"
    limits = [deployment["concurrency_limit"]["limit"] for deployment in DEPLOYMENTS if deployment["name"] not in unlimited]
    assert set(limits) == {1}


def test_a_fallen_champion_starts_a_deployment_that_exists() -> None:
    names = {f"{load_flow(deployment).name}/{deployment['name']}" for deployment in DEPLOYMENTS}
    (daily,) = (deployment for deployment in DEPLOYMENTS if deployment["name"] == "daily-check")
    assert daily["parameters"]["retrain_deployment"] in names


def test_the_pages_name_deployments_that_exist() -> None:
    names = {f"{load_flow(deployment).name}/{deployment['name']}" for deployment in DEPLOYMENTS}
    flows = "|".join({name.partition("/")[0] for name in names})
    for page in (
        ROOT / "docs/operations.md",
        ROOT / "docs/promotion.md",
        ROOT / "bench/harness/team_day.py",
        ROOT / "flows/model_flows.py",
    ):
        mentions = set(re.findall(rf"(?<![\w/])(?:{flows})/[a-z][a-z-]+(?![\w./])", page.read_text()))
        assert mentions
        assert mentions <= names, page


AUTOMATIONS = "infra/prefect/automations.yaml"
KUBERNETES = ["--prefect-file", "infra/k8s/prefect.yaml", "--automations", AUTOMATIONS]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("prefect")
def test_a_new_image_on_kubernetes_keeps_the_schedule_that_somebody_resumed(
    server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
    from prefect.client.schemas.schedules import CronSchedule

    for variable in (server_setup.WEBHOOK_ENV, server_setup.SLACK_ENV):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PREFECT_API_URL", server_url)
    monkeypatch.chdir(ROOT)
    template = json.loads((ROOT / "infra/k8s/prefect-job-template.json").read_text())
    resumed = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 3 * * 1"), active=True, slug="weekly")
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="kubernetes", type="kubernetes", base_job_template=template))
        flow = client.create_flow_from_name("retrain")
        client.create_deployment(flow, "kubernetes", schedules=[resumed], work_pool_name="kubernetes")
    assert server_setup.main(KUBERNETES) == 0

    async def automations() -> set[str]:
        async with get_client() as client:
            return {automation.name for automation in await client.read_automations()}

    assert set(prefect_checks.AUTOMATIONS) <= asyncio.run(automations())
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("retrain/kubernetes")
        assert client.read_global_concurrency_limit_by_name(server_stack.GPU_LIMIT).limit == 1
    assert deployment.work_pool_name == "kubernetes"
    assert deployment.job_variables["image"].startswith("emuedit-train:")
    assert [schedule.active for schedule in deployment.schedules] == [True]


@pytest.mark.parametrize("automations", ["none.yaml", AUTOMATIONS])
def test_one_pool_or_one_file_is_wanted_with_automations_that_exist(
    automations: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(server_setup, "get_client", lambda: pytest.fail("the server was asked"))
    words = KUBERNETES[:2] if automations == "none.yaml" else []
    with pytest.raises(SystemExit) as end:
        server_setup.main([*words, "--automations", automations])
    assert end.value.code == 2
    output = capsys.readouterr().err
    assert ("which does not exist; correct --automations" if words else "one of the arguments --pool --prefect-file") in output


def test_the_kubernetes_pool_is_set_up_with_its_automations_and_without_losing_schedules() -> None:
    """Without automations a run whose pod died holds its slot for ever; `prefect deploy` would deactivate schedules."""
    for file in ("infra/k8s/prefect.yaml", "docs/deployment.md"):
        text = (ROOT / file).read_text()
        assert f"uv run python -m flows.server_setup {' '.join(KUBERNETES)}" in text, file
        assert "prefect deploy --" not in text, file


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("prefect")
def test_prefect_accepts_the_deployments_and_a_second_time_keeps_what_people_set(
    server_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefect.cli import app
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.schedules import CronSchedule

    monkeypatch.setenv("PREFECT_API_URL", server_url)
    monkeypatch.chdir(ROOT)
    name = "retrain/nightly-retrain-and-push"

    def run(main: Callable[[], int | None], *words: str) -> str:
        """Output of a program, in this process: importing Prefect takes five seconds of a core."""
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["program", *words])
        with pytest.raises(SystemExit) as end:
            sys.exit(main())
        assert not end.value.code
        return capsys.readouterr().out

    def deploy(pool: str = "local") -> Any:
        run(server_setup.main, "--pool", pool, "--automations", "none.yaml")
        with get_client(sync_client=True) as client:
            return client.read_deployment_by_name(name)

    nightly = deploy()
    ((step, arguments),) = nightly.pull_steps[0].items()
    assert (step.rpartition(".")[2], arguments) == ("set_working_directory", {"directory": str(ROOT)})
    with get_client(sync_client=True) as client:
        limits = {queue.name: queue.concurrency_limit for queue in client.read_work_queues(work_pool_name="local")}
        assert limits == {"default": 1, server_setup.QUEUE: None}
        assert client.read_deployment_by_name("rollback/champion").work_queue_name == server_setup.QUEUE
    assert [schedule.active for schedule in nightly.schedules] == [False]
    (listed,) = json.loads(run(app, "deployment", "schedule", "ls", name, "--output", "json"))
    run(app, "deployment", "schedule", "resume", name, listed["id"])  # as docs/operations.md does
    with get_client(sync_client=True) as client:
        client.create_deployment_schedules(nightly.id, [(CronSchedule(cron="5 5 * * *"), True)])
        client.pause_deployment(nightly.id)
    again = deploy()
    assert {(schedule.slug, schedule.active) for schedule in again.schedules} == {("nightly", True), (None, True)}
    assert again.paused
    assert nightly.parameter_openapi_schema["properties"].keys() >= {"registry", "force", "max_parallel", "reason"}
    moved = deploy("other")
    assert (moved.work_pool_name, moved.pull_steps, moved.path) == ("other", nightly.pull_steps, nightly.path)
    with get_client(sync_client=True) as client:
        rollback = client.read_deployment_by_name("rollback/champion")
    assert (rollback.work_pool_name, rollback.work_queue_name) == ("other", server_setup.QUEUE)


def test_a_folder_without_deployments_is_refused_before_the_server_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(server_setup, "get_client", lambda: pytest.fail("the server was asked"))
    with pytest.raises(SystemExit) as end:
        server_setup.main(["--pool", "local", "--automations", "none.yaml"])
    assert end.value.code == 2
    assert "want prefect.yaml in the working folder, got none in" in capsys.readouterr().err
