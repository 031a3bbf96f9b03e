"""infra/prefect/automations.yaml, as Prefect reads it."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from emuedit.operations.health import server_checks
from emuedit.operations.servers import server_stack
from tests.repository import ROOT

(HEARTBEAT,) = server_stack.HEARTBEAT_ENV
PATH = ROOT / "infra/prefect/automations.yaml"


def automations(actions: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    from flows.server_setup import read_automations

    return {automation.name: automation for automation in read_automations(PATH, actions or [])}


def test_runs_that_died_free_their_slots() -> None:
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import Posture

    heartbeat, pending = automations()["crashed-without-heartbeat"], automations()["pending-too-long"]
    for automation in (heartbeat, pending):
        assert automation.enabled
        assert automation.trigger.posture == Posture.Proactive
        assert automation.trigger.for_each == {"prefect.resource.id"}
        (action,) = automation.actions
        assert isinstance(action, ChangeFlowRunState)
        assert action.state == StateType.CRASHED
        terminal = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
        assert terminal <= automation.trigger.expect
    frequency_s = int(server_stack.HEARTBEAT_ENV[HEARTBEAT])
    assert heartbeat.trigger.within >= timedelta(seconds=2 * frequency_s), "want time for a heartbeat that is late"
    minutes = pending.trigger.within // timedelta(minutes=1)
    assert f"pending for {minutes} minutes" in str(pending.actions[0].message)
    assert pending.trigger.within == server_checks._PENDING


def test_a_run_whose_pod_waits_for_a_machine_is_left_alone() -> None:
    """Its Job stays: set to Crashed and started again, it would run twice. The Kubernetes worker gives it a state of its own."""
    from prefect.states import InfrastructurePending

    assert f"prefect.flow-run.{InfrastructurePending().name}" in automations()["pending-too-long"].trigger.expect


def test_a_run_whose_pod_was_evicted_is_left_alone_until_its_new_pod_runs() -> None:
    """The worker of Kubernetes starts it again. It was set to Crashed after 90 s, as a machine and an image took longer."""
    from prefect.server.events.schemas.automations import EventTrigger

    entries = {entry["name"]: entry for entry in yaml.safe_load(PATH.read_text())["automations"]}
    trigger = EventTrigger.model_validate(entries["crashed-without-heartbeat"]["trigger"])
    assert trigger.starts_after("prefect.flow-run.heartbeat")
    for state in ("AwaitingRetry", "Pending", "InfrastructurePending"):  # in the order of Prefect's worker
        assert trigger.expects(f"prefect.flow-run.{state}")
        assert not trigger.starts_after(f"prefect.flow-run.{state}")
    assert not trigger.expects("prefect.flow-run.Running"), "a run that stays Running is the one that died"


def test_every_process_that_may_run_a_flow_sends_the_heartbeats_that_the_automation_waits_for(tmp_path: Path) -> None:
    """Prefect's default is longer than the automation waits, so a healthy run would be set to Crashed."""
    from prefect.settings import get_current_settings

    from flows.retrain import RETRAIN_ENV

    layout = server_stack.StackLayout(tmp_path, dict.fromkeys(server_stack.NAMES, 1), None)
    compose = yaml.safe_load((ROOT / "infra/compose.yaml").read_text())["services"]["worker"]["environment"]
    config = yaml.safe_load((ROOT / "infra/k8s/config.yaml").read_text())["data"]
    (deployment,) = yaml.safe_load((ROOT / "infra/k8s/prefect.yaml").read_text())["deployments"]
    pool = json.loads((ROOT / "infra/k8s/prefect-job-template.json").read_text())["variables"]["properties"]["env"]["default"]
    places = {
        "shells": layout.exports, "worker of `up`": server_stack._worker(layout).command.environment, "retrain": RETRAIN_ENV,
        "compose": compose, "training job": config, "Kubernetes": deployment["work_pool"]["job_variables"]["env"], "pool": pool,
    }  # fmt: skip
    assert {place: variables.get(HEARTBEAT) for place, variables in places.items()} == dict.fromkeys(places, "30")
    field = type(get_current_settings().flows).model_fields["heartbeat_frequency"]
    assert HEARTBEAT.lower() in field.validation_alias.choices  # type: ignore[union-attr]


@pytest.mark.slow
def test_runs_of_other_flows_on_the_server_are_left_alone() -> None:
    """Other teams send heartbeats every 180 s, as is Prefect's default, and their runs would be set to Crashed."""
    from prefect.server.events.schemas.automations import EventTrigger
    from prefect.server.events.schemas.events import ReceivedEvent

    from flows.server_setup import deployment_names

    content = yaml.safe_load(PATH.read_text())
    triggers = [EventTrigger.model_validate(entry["trigger"]) for entry in content["automations"] + content["notifications"]]
    files = ("prefect.yaml", "infra/k8s/prefect.yaml")
    deployments = [entry for file in files for entry in yaml.safe_load((ROOT / file).read_text())["deployments"]]
    names = {name.partition("/")[0] for name in deployment_names(deployments)}
    assert names == set(content["definitions"]["flows"]["prefect.resource.name"])
    tag = {"prefect.resource.id": "prefect.tag.auto-scheduled", "prefect.resource.role": "tag"}
    for name in (*names, "billing-etl"):
        flow = {"prefect.resource.id": f"prefect.flow.{uuid4()}", "prefect.resource.role": "flow", "prefect.resource.name": name}
        run = {"prefect.resource.id": f"prefect.flow-run.{uuid4()}"}
        event = ReceivedEvent(
            occurred=datetime.now(UTC), event="prefect.flow-run.Crashed", resource=run, related=[flow, tag], id=uuid4()
        )
        covered = [trigger.covers_resources(event.resource, event.related) for trigger in triggers]
        assert covered == [name in names] * 4, name


def test_notifications_are_there_only_with_a_url() -> None:
    assert "notify-failed-or-late" not in automations()
    action = {"type": "call-webhook", "block_document_id": "0a0a0a0a-0000-4000-8000-000000000000", "payload": "{}"}
    automation = automations([action])["notify-failed-or-late"]
    assert {"prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.Late"} == automation.trigger.expect


def test_a_key_that_prefect_does_not_know_is_an_error(tmp_path: Any) -> None:
    from pydantic import ValidationError

    from flows.server_setup import read_automations

    content = yaml.safe_load(PATH.read_text())
    content["automations"][0]["triger"] = content["automations"][0].pop("trigger")
    path = tmp_path / "automations.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValidationError):
        read_automations(path)


def test_a_run_that_waits_behind_a_training_is_not_reported_as_late() -> None:
    """Prefect's default is 15 s, so that every daily check during a training sent an alert."""
    from prefect.settings import get_current_settings

    server = server_stack._prefect(
        server_stack.StackLayout(Path(), dict.fromkeys(server_stack.NAMES, 1), None)
    ).command.environment
    compose = yaml.safe_load((ROOT / "infra/compose.yaml").read_text())["services"]["prefect"]["environment"]
    ((name, seconds),) = server_stack.LATE_ENV.items()
    assert server[name] == compose[name] == seconds
    field = type(get_current_settings().server.services.late_runs).model_fields["after_seconds"]
    assert name.lower() in field.validation_alias.choices  # type: ignore[union-attr]
