"""What people set at deployments outlives `prefect deploy`, and deployments of other teams are left alone."""

import asyncio
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound

from flows import schedule_states


def make_schedule(slug: str | None, active: bool, cron: str = "0 3 * * 1") -> DeploymentSchedule:
    return DeploymentSchedule(id=uuid4(), deployment_id=uuid4(), schedule=CronSchedule(cron=cron), active=active, slug=slug)


class FakeClient:
    """A server with deployments; keeps what was changed."""

    def __init__(self, deployments: dict[str, Any]) -> None:
        self.deployments, self.changes = deployments, list[tuple[Any, ...]]()

    async def __aenter__(self) -> "FakeClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def read_deployment_by_name(self, name: str) -> Any:
        if name not in self.deployments:
            raise ObjectNotFound(http_exc=httpx.HTTPError("404"))
        return self.deployments[name]

    async def pause_deployment(self, deployment_id: UUID) -> None:
        self.changes.append(("pause", deployment_id))

    async def update_deployment_schedule(self, deployment_id: UUID, schedule_id: UUID, active: bool) -> None:
        self.changes.append(("update", schedule_id, active))

    async def create_deployment_schedules(self, deployment_id: UUID, schedules: list[Any]) -> None:
        self.changes += [("create", deployment_id, schedule.schedule.cron, schedule.active) for schedule in schedules]


def deployment(*schedules: DeploymentSchedule, paused: bool = False, number: UUID | None = None, team: str = "own") -> Any:
    return SimpleNamespace(id=number or uuid4(), paused=paused, schedules=schedules, team=team)


def run(before: list[Any], after: list[Any], monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The changes by which the state of `before` is restored after a block that leaves `after`."""
    client = FakeClient({f"{entry.team}/{entry.id}": entry for entry in before})
    monkeypatch.setattr(schedule_states, "get_client", lambda: client)
    names = [f"own/{entry.id}" for entry in [*before, *after] if entry.team == "own"]

    async def restore() -> None:
        async with schedule_states.kept_states(names):
            client.deployments = {f"{entry.team}/{entry.id}": entry for entry in after}

    asyncio.run(restore())
    return client.changes


def test_a_schedule_that_somebody_resumed_or_paused_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, unchanged = uuid4(), uuid4(), uuid4()
    resumed, paused = make_schedule("weekly", active=False), make_schedule("nightly", active=True)
    before = [
        deployment(make_schedule("weekly", active=True), number=first),
        deployment(make_schedule("nightly", active=False), number=second),
        deployment(make_schedule("daily", active=False), number=unchanged),
    ]
    after = [
        deployment(resumed, number=first),
        deployment(paused, number=second),
        deployment(make_schedule("daily", active=False), number=unchanged),
        deployment(make_schedule("hourly", active=False)),
    ]
    assert run(before, after, monkeypatch) == [("update", resumed.id, True), ("update", paused.id, False)]


def test_a_schedule_without_a_slug_and_a_paused_deployment_are_there_again(monkeypatch: pytest.MonkeyPatch) -> None:
    number = uuid4()
    by_hand, of_file = make_schedule(None, active=True, cron="0 1 * * *"), make_schedule("weekly", active=False)
    before = [deployment(of_file, by_hand, paused=True, number=number)]
    changes = run(before, [deployment(make_schedule("weekly", active=False), number=number)], monkeypatch)
    assert changes == [("pause", number), ("create", number, "0 1 * * *", True)]
    assert run(before, [], monkeypatch) == [], "want nothing done for a deployment that is gone"


def test_what_another_team_changes_meanwhile_at_its_deployments_stays_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    number = uuid4()
    before = [deployment(make_schedule("hourly", active=True), paused=True, number=number, team="billing")]
    after = [deployment(make_schedule("hourly", active=False), number=number, team="billing")]
    assert run(before, after, monkeypatch) == []
