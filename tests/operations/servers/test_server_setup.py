"""The GPU slots that flows/server_setup.py creates on a Prefect server, and the stages that take them."""

import argparse
import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from prefect.exceptions import ObjectNotFound

from emuedit.operations.servers import server_stack
from flows import dvc_graph, gpu_slot, pipeline, run_stage, server_setup
from tests.repository import ROOT


class FakeServer:
    """The global concurrency limits of a server."""

    def __init__(self) -> None:
        self.limits: dict[str, int] = {}
        self.n_changes = 0

    async def __aenter__(self) -> "FakeServer":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def read_global_concurrency_limit_by_name(self, name: str) -> Any:
        if name not in self.limits:
            raise ObjectNotFound(http_exc=httpx.HTTPError("404"))
        return SimpleNamespace(limit=self.limits[name])

    async def create_global_concurrency_limit(self, request: Any) -> None:
        assert request.active
        self.limits[request.name], self.n_changes = request.limit, self.n_changes + 1

    async def update_global_concurrency_limit(self, name: str, request: Any) -> None:
        self.limits[name], self.n_changes = request.limit, self.n_changes + 1


def test_the_limit_is_created_once_and_what_people_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeServer()
    monkeypatch.setattr(server_setup, "get_client", lambda: server)
    for n_slots, expected, n_changes in ((None, 1, 1), (None, 1, 1), (3, 3, 2), (3, 3, 2), (None, 3, 2)):
        assert asyncio.run(server_setup.create_gpu_limit(n_slots)) == expected
        assert (server.limits, server.n_changes) == ({server_stack.GPU_LIMIT: expected}, n_changes)


def test_a_number_of_slots_is_at_least_one() -> None:
    assert (server_setup.parse_slots(""), server_setup.parse_slots("2")) == (None, 2)
    for text in ("0", "-1", "two", "1.5"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"want a number of GPU slots of at least 1, got '{text}'"):
            server_setup.parse_slots(text)


@pytest.mark.parametrize("name", ["train", "captions"])
def test_a_stage_holds_a_slot_while_it_runs_if_its_meta_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    occupied: list[tuple[str, int, float]] = []
    during_run: list[list[tuple[str, int, float]]] = []

    @contextmanager
    def concurrency(names: str, occupy: int = 1, lease_duration: float = 300, **_: object) -> Iterator[None]:
        occupied.append((names, occupy, lease_duration))
        yield
        occupied.clear()

    def run(*_: object) -> float:
        during_run.append(list(occupied))
        return 1.0

    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    needs_gpu = dvc_graph.Stage(name, meta=stages[name].get("meta", {})).needs_gpu
    monkeypatch.setattr(gpu_slot, "concurrency", concurrency)
    monkeypatch.setattr(run_stage, "run", run)
    monkeypatch.setitem(pipeline._states, ROOT, pipeline._FlowState())
    assert pipeline.reproduce.fn(run_stage.StageCall(name, ROOT), "starting", needs_gpu=needs_gpu) == 1.0
    assert during_run == [[("emuedit-gpu", 1, 60)] if name == "train" else []]
    assert occupied == []
