"""Prepare a Prefect server for a worker: create the work pool, the GPU slots, the deployments and the automations.

    python -m flows.server_setup --pool local --automations infra/prefect/automations.yaml
    python -m flows.server_setup --prefect-file infra/k8s/prefect.yaml --automations infra/prefect/automations.yaml

Uses the server at PREFECT_API_URL. The deployments are those of prefect.yaml, in the pool that `--pool` names, or those of
`--prefect-file`, in the pools that this file names, which a person created. Existing objects are updated, so it can be repeated;
schedules stay active or inactive, see `schedule_states`.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from prefect.blocks.core import Block
from prefect.blocks.notifications import SlackWebhook
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate, WorkPoolCreate
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_arguments_from_entrypoint

from emuedit.operations.servers.server_stack import GPU_LIMIT
from flows.schedule_states import kept_states

WEBHOOK_ENV, SLACK_ENV = "EMUEDIT_WEBHOOK_URL", "EMUEDIT_SLACK_URL"
"""Environment variables with the URLs for notifications."""
GPU_SLOTS_ENV = "EMUEDIT_GPU_SLOTS"
"""Environment variable with the default of `--gpu-slots`."""
QUEUE = "registry"
"""Queue of the work pool for flows that only move aliases of the registry, as in prefect.yaml."""
PREFECT_FILE = Path("prefect.yaml")
"""File in the working folder with the deployments."""
_DEFAULT_QUEUE = "default"
_SUBJECT = "{{ flow_run.name }} of {{ flow.name }}: {{ flow_run.state.name }}"
_BODY = "{{ flow_run.state.message }}"
_PAYLOAD = '{"run": "{{ flow_run.name }}", "flow": "{{ flow.name }}", "state": "{{ flow_run.state.name }}"}'


def read_automations(path: Path, actions: Sequence[Mapping[str, Any]] = ()) -> list[AutomationCore]:
    """The automations of a file; notifications only if there are `actions` for them. Raises ValidationError for unknown keys."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    specifications = list(content["automations"])
    if actions:
        specifications += [{**notification, "actions": list(actions)} for notification in content["notifications"]]
    return [AutomationCore.model_validate(specification) for specification in specifications]


async def apply_automations(path: Path) -> list[str]:
    """Create or update the automations of a file, and return their names."""
    automations = read_automations(path, await _notification_actions())
    async with get_client() as client:
        for automation in automations:
            present = await client.read_automations_by_name(automation.name)
            if present:
                await client.update_automation(present[0].id, automation)
            else:
                await client.create_automation(automation)
    return [automation.name for automation in automations]


async def create_pool(name: str) -> None:
    """Create a work pool for processes, unless it exists, and a queue in which a rollback does not wait for a training.

    The default queue is limited to one run at a time, unless it has a limit already.
    """
    async with get_client() as client:
        try:
            await client.read_work_pool(name)
        except ObjectNotFound:
            await client.create_work_pool(WorkPoolCreate(name=name, type="process"))
        queues = {queue.name: queue for queue in await client.read_work_queues(work_pool_name=name)}
        if queues[_DEFAULT_QUEUE].concurrency_limit is None:
            await client.update_work_queue(queues[_DEFAULT_QUEUE].id, concurrency_limit=1)
        if QUEUE not in queues:
            await client.create_work_queue(QUEUE, work_pool_name=name)


async def create_gpu_limit(n_slots: int | None) -> int:
    """Create the limit of stages that use a GPU at the same time, and return its number of slots.

    None: one slot for a new limit; the slots of an existing limit are kept.
    """
    async with get_client() as client:
        try:
            present = await client.read_global_concurrency_limit_by_name(GPU_LIMIT)
        except ObjectNotFound:
            await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU_LIMIT, limit=n_slots or 1))
            return n_slots or 1
        if n_slots is None or n_slots == present.limit:
            return int(present.limit)
        await client.update_global_concurrency_limit(GPU_LIMIT, GlobalConcurrencyLimitUpdate(limit=n_slots))
        return n_slots


def parse_slots(text: str) -> int | None:
    """The number of GPU slots of an option or a variable; None if it is empty. Raises ArgumentTypeError below 1."""
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"want a number of GPU slots of at least 1, got {text!r}; 1 runs one stage at a time")
    return int(text)


async def deploy(path: Path, pool: str | None) -> int:
    """Create or update the deployments of a file; returns the exit status of `prefect deploy`.

    pool: work pool of all deployments; None: the pools that the file names.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if pool is not None:
        for deployment in content["deployments"]:
            deployment["work_pool"] = {**deployment.get("work_pool", {}), "name": pool}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, PREFECT_FILE.name)
        file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(file), "--all"]
        async with kept_states(deployment_names(content["deployments"])):
            return subprocess.run(command, check=False).returncode


def deployment_names(deployments: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names `<flow>/<deployment>` of deployments of a prefect.yaml, whose entrypoints are relative to the working folder."""
    flows = [load_flow_arguments_from_entrypoint(entry["entrypoint"], {"name"})["name"] for entry in deployments]
    return [f"{flow}/{entry['name']}" for flow, entry in zip(flows, deployments, strict=True)]


async def _notification_actions() -> list[dict[str, Any]]:
    """Actions that notify the URLs in the environment. The server stores the URLs encrypted, in blocks."""
    actions: list[dict[str, Any]] = []
    if url := os.environ.get(WEBHOOK_ENV):
        block = await _save(Webhook(method="POST", url=url), "emuedit-webhook")
        actions.append({"type": "call-webhook", "block_document_id": block, "payload": _PAYLOAD})
    if url := os.environ.get(SLACK_ENV):
        block = await _save(SlackWebhook(url=url), "emuedit-slack")
        actions.append({"type": "send-notification", "block_document_id": block, "subject": _SUBJECT, "body": _BODY})
    return actions


async def _save(block: Block, name: str) -> str:
    saving: Any = block.save(name, overwrite=True)
    return str(await saving)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status of `prefect deploy`. arguments: None for those of the process."""
    parser = argparse.ArgumentParser(
        prog="server_setup", description="Prepare a Prefect server for the flows of this folder.", allow_abbrev=False
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--pool", help=f"work pool of the type process, for the deployments of {PREFECT_FILE}")
    target.add_argument("--prefect-file", type=Path, metavar="FILE", help="file with deployments, in pools that exist")
    parser.add_argument(
        "--automations", type=Path, required=True, metavar="FILE", help="automations to apply; with --pool skipped if missing"
    )
    parser.add_argument(
        "--gpu-slots",
        type=parse_slots,
        default=os.environ.get(GPU_SLOTS_ENV, ""),
        metavar="N",
        help=f"stages that may use a GPU at the same time; default: {GPU_SLOTS_ENV}, else as on the server, else 1",
    )
    options = parser.parse_args(arguments)
    if options.prefect_file and not options.automations.exists():
        parser.error(f"want a file with automations, got {options.automations}, which does not exist; correct --automations")
    file = options.prefect_file or PREFECT_FILE
    if not file.is_file():
        parser.error(f"want {file} in the working folder, got none in {Path.cwd()}; run it in the project's folder")
    if options.pool:
        asyncio.run(create_pool(options.pool))
    print(f"slots of {GPU_LIMIT}:", asyncio.run(create_gpu_limit(options.gpu_slots)), flush=True)
    if options.automations.exists():
        print("automations:", ", ".join(asyncio.run(apply_automations(options.automations))), flush=True)
    return asyncio.run(deploy(file, options.pool))


if __name__ == "__main__":
    sys.exit(main())
