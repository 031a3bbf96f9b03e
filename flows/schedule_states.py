"""Preserve the state of deployments over `prefect deploy`, which would reset them to prefect.yaml.

Without this, `emuedit up` would deactivate resumed schedules and delete manually created ones. Cron lines and parameters are
taken from prefect.yaml. Other deployments of the server, which may change at the same time, are neither read nor changed.
"""

import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.exceptions import ObjectNotFound

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient


@dataclass(frozen=True)
class DeploymentState:
    """The state of a deployment that a person can set."""

    deployment_id: UUID
    is_paused: bool
    schedules: tuple[DeploymentSchedule, ...]


@contextlib.asynccontextmanager
async def kept_states(names: Iterable[str]) -> AsyncIterator[None]:
    """After the block, even if it fails, restore the state of those deployments and schedules that existed before it.

    names: of deployments, as `<flow>/<deployment>`. Prints a line for each state that the block changed. Raises Prefect's errors
    if the server does not answer.
    """
    async with get_client() as client:
        before = await read_states(client, names)
    try:
        yield
    finally:
        async with get_client() as client:
            await restore(client, before)


async def read_states(client: "PrefectClient", names: Iterable[str]) -> dict[str, DeploymentState]:
    """Name of each of these deployments that exists -> its state."""
    states: dict[str, DeploymentState] = {}
    for name in names:
        with contextlib.suppress(ObjectNotFound):
            entry = await client.read_deployment_by_name(name)
            states[name] = DeploymentState(entry.id, bool(entry.paused), tuple(entry.schedules))
    return states


async def restore(client: "PrefectClient", before: Mapping[str, DeploymentState]) -> None:
    """Restore the states of `before` for deployments that still exist; others are not changed."""
    for name, present in (await read_states(client, before)).items():
        earlier, deployment_id = before[name], present.deployment_id
        if earlier.is_paused and not present.is_paused:
            await client.pause_deployment(deployment_id)
            print(f"deployment {name}: stays paused", flush=True)
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
