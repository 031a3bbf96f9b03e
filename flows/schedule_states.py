"""Preserve the state of deployments over `prefect deploy`, which would reset them to prefect.yaml.

Without this, `emuedit up` would deactivate resumed schedules and delete manually created ones. Cron lines and parameters are
taken from prefect.yaml.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import DeploymentSchedule

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

_PAGE = 100  # deployments per request; the server gives at most 200


@dataclass(frozen=True)
class DeploymentState:
    """The state of a deployment that a person can set."""

    is_paused: bool
    schedules: tuple[DeploymentSchedule, ...]


@asynccontextmanager
async def kept_states() -> AsyncIterator[None]:
    """After the block, even if it fails, restore the state of earlier deployments and schedules.

    Prints a line for each state that the block changed. Raises Prefect's errors if the server does not answer.
    """
    async with get_client() as client:
        before = await read_states(client)
    try:
        yield
    finally:
        async with get_client() as client:
            await restore(client, before)


async def read_states(client: "PrefectClient") -> dict[UUID, DeploymentState]:
    """Id of each deployment of the server -> its state."""
    states: dict[UUID, DeploymentState] = {}
    while deployments := await client.read_deployments(limit=_PAGE, offset=len(states)):
        states |= {entry.id: DeploymentState(bool(entry.paused), tuple(entry.schedules)) for entry in deployments}
    return states


async def restore(client: "PrefectClient", before: Mapping[UUID, DeploymentState]) -> None:
    """Restore the states of `before` for deployments that still exist; others are not changed."""
    for deployment_id, present in (await read_states(client)).items():
        earlier = before.get(deployment_id)
        if earlier is None:
            continue
        if earlier.is_paused and not present.is_paused:
            await client.pause_deployment(deployment_id)
            print(f"deployment {deployment_id}: stays paused", flush=True)
        by_key = {_key(schedule): schedule for schedule in present.schedules}
        for schedule in earlier.schedules:
            await _restore_schedule(client, deployment_id, schedule, by_key.get(_key(schedule)))


async def _restore_schedule(
    client: "PrefectClient", deployment_id: UUID, earlier: DeploymentSchedule, present: DeploymentSchedule | None
) -> None:
    state = "active" if earlier.active else "inactive"
    if present is None:
        again = DeploymentScheduleCreate(
            schedule=earlier.schedule, active=earlier.active, parameters=earlier.parameters, slug=earlier.slug
        )
        await client.create_deployment_schedules(deployment_id, [again])
    elif present.active != earlier.active:
        await client.update_deployment_schedule(deployment_id, present.id, active=earlier.active)
    else:
        return
    print(f"schedule {_key(earlier)}: stays {state}", flush=True)


def _key(schedule: DeploymentSchedule) -> str:
    """Key of a schedule within its deployment: its slug, or else its times."""
    return schedule.slug or str(schedule.schedule)
