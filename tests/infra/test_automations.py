"""infra/prefect/automations.yaml, as Prefect reads it."""

from datetime import timedelta
from typing import Any

import pytest
import yaml

from emuedit.operations import server_stack
from tests.repository import ROOT

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
    layout = server_stack.StackLayout(ROOT, dict.fromkeys(server_stack.NAMES, 1), None)
    frequency_s = int(server_stack._worker(layout).command.environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
    assert heartbeat.trigger.within >= timedelta(seconds=2 * frequency_s), "want time for a heartbeat that is late"
    assert pending.trigger.within == timedelta(minutes=10)


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
