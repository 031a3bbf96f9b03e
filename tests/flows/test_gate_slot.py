"""Models are measured with the GPU slot, if the stage whose measurements they repeat has one."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emuedit.promotion import promote as promotion
from emuedit.promotion.gate import Decision, Measurement
from emuedit.promotion.promote import PromotionOutcome, Remeasurement
from emuedit.tracking import registry
from emuedit.tracking.registry import ModelVersion
from flows import dvc_graph, gpu_slot, model_flows, release

PENDING = ModelVersion(5, "run", {promotion.STATE_TAG: promotion.PENDING})


@pytest.fixture
def slots(project: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens, in order: `taken`, `measured`, `released`."""
    events: list[str] = []

    @contextlib.contextmanager
    def concurrency(*names: str, **options: Any) -> Iterator[None]:
        events.append("taken")
        yield
        events.append("released")

    def measure(result: Any) -> Any:
        return lambda *arguments, **options: events.append("measured") or result

    monkeypatch.setattr(gpu_slot, "concurrency", concurrency)
    monkeypatch.setattr(promotion, "promote", measure(PromotionOutcome(PENDING, Decision(False, "no better"), 1, None)))
    monkeypatch.setattr(promotion, "measure_again", measure(Remeasurement(0.5, 0.5, ("local",))))
    monkeypatch.setattr(promotion, "measure_version", measure(Measurement("5", {"local": [True]})))
    for name in ("get_version", "version_at"):
        monkeypatch.setattr(registry, name, lambda *arguments: PENDING)
    monkeypatch.setattr(registry, "set_version_tags", lambda *arguments: None)
    monkeypatch.setattr(model_flows, "version_card", SimpleNamespace(SUCCESS_TAG="a", SUCCESS_CONDITIONS_TAG="b", update=print))
    monkeypatch.setattr(model_flows, "create_markdown_artifact", lambda *arguments, **options: None)
    return events


def decide() -> None:
    """The end of a retrain."""
    stages = (dvc_graph.Stage("scores", (), (Path("reports"),), meta={"gate": "emuedit"}),)
    release._decide(dvc_graph.Graph(Path.cwd(), stages, (), {}), release.RetrainResult(version=PENDING))


MEASURING = {
    "retrain": decide,
    "promote": lambda: model_flows.promote.fn(5),
    "evaluate": lambda: model_flows.evaluate.fn(),
    "backfill": lambda: model_flows.backfill.fn([5]),
}


@pytest.mark.parametrize("flow", MEASURING)
def test_a_flow_measures_with_a_slot_if_the_gate_stage_uses_the_gpu(flow: str, slots: list[str], project: Path) -> None:
    MEASURING[flow]()
    assert slots == ["measured"], "want no slot for a stage without gpu: true"
    slots.clear()
    file = project / "dvc.yaml"
    file.write_text(file.read_text().replace("{gate: emuedit,", "{gate: emuedit, gpu: true,"))
    MEASURING[flow]()
    assert slots == ["taken", "measured", "released"]
