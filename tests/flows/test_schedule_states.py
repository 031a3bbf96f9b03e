"""What people set at deployments outlives `prefect deploy`."""

import asyncio
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule

from flows import schedule_states


def make_schedule(slug: str | None, active: bool, cron: str = "0 3 * * 1") -> DeploymentSchedule:
    return DeploymentSchedule(id=uuid4(), deployment_id=uuid4(), schedule=CronSchedule(cron=cron), active=active, slug=slug)


class FakeClient:
    """A server with deployments, in pages as Prefect gives them; keeps what was changed."""

    def __init__(self, deployments: dict[UUID, Any]) -> None:
        self.deployments, self.changes = deployments, list[tuple[Any, ...]]()

    async def read_deployments(self, limit: int, offset: int) -> list[Any]:
        return list(self.deployments.values())[offset : offset + min(limit, 2)]

    async def pause_deployment(self, deployment_id: UUID) -> None:
        self.changes.append(("pause", deployment_id))

    async def update_deployment_schedule(self, deployment_id: UUID, schedule_id: UUID, active: bool) -> None:
        self.changes.append(("update", schedule_id, active))

    async def create_deployment_schedules(self, deployment_id: UUID, schedules: list[Any]) -> None:
        self.changes += [("create", deployment_id, schedule.schedule.cron, schedule.active) for schedule in schedules]


def deployment(*schedules: DeploymentSchedule, paused: bool = False, number: UUID | None = None) -> Any:
    return SimpleNamespace(id=number or uuid4(), paused=paused, schedules=schedules)


def run(before: list[Any], after: list[Any]) -> list[tuple[Any, ...]]:
    """The changes by which the state of `before` is restored."""

    async def restore() -> list[tuple[Any, ...]]:
        earlier = await schedule_states.read_states(FakeClient({entry.id: entry for entry in before}))  # type: ignore[arg-type]
        client = FakeClient({entry.id: entry for entry in after})
        await schedule_states.restore(client, earlier)  # type: ignore[arg-type]
        return client.changes

    return asyncio.run(restore())


def test_a_schedule_that_somebody_resumed_or_paused_stays_so() -> None:
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
    assert run(before, after) == [("update", resumed.id, True), ("update", paused.id, False)]


def test_a_schedule_without_a_slug_and_a_paused_deployment_are_there_again() -> None:
    number = uuid4()
    by_hand, of_file = make_schedule(None, active=True, cron="0 1 * * *"), make_schedule("weekly", active=False)
    before = [deployment(of_file, by_hand, paused=True, number=number)]
    changes = run(before, [deployment(make_schedule("weekly", active=False), number=number)])
    assert changes == [("pause", number), ("create", number, "0 1 * * *", True)]
    assert run(before, []) == [], "want nothing done for a deployment that is gone"
