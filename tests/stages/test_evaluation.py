import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from emuedit import config
from emuedit.config import ParamsError, load
from emuedit.data.publish import read_folder
from emuedit.data.records import EvalRecord
from emuedit.metrics import benchmark
from emuedit.models import clip, dino
from emuedit.stages import evaluation

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "toyworld/weights"


@pytest.fixture(scope="module")
def judges() -> tuple[clip.ClipScorer, dino.DinoScorer]:
    return clip.load(str(WEIGHTS / "clip")), dino.load(str(WEIGHTS / "dino"))


def edits(task: str, n: int = 6) -> benchmark.Benchmark:
    return benchmark.load("toyworld/edits/toy_benchmark.py")(task, "held_out", 0, n)


def nothing(some: benchmark.Benchmark, seeds: list[int]) -> tuple[benchmark.Pictures, list[str]]:
    return some.before, [some.task] * len(seeds)


def perfect(some: benchmark.Benchmark, seeds: list[int]) -> tuple[benchmark.Pictures, list[str]]:
    return some.exact, ["local"] * len(seeds)


def test_doing_nothing_keeps_the_picture_and_has_no_direction(judges: tuple[clip.ClipScorer, dino.DinoScorer]) -> None:
    found = evaluation.answers("identity", nothing, edits("remove"), judges, 0)
    table = evaluation.summarised(found, ("remove",))
    assert [table[name]["identity"]["remove"] for name in ("edit_success", "l1", "clip_im", "dino")] == [0.0, 0.0, 1.0, 1.0]
    assert table["clip_dir"]["identity"]["remove"] is None
    assert table["undefined_clip_dir"]["identity"]["remove"] == len(found)


def test_the_exact_result_succeeds_and_moves_towards_its_caption(judges: tuple[clip.ClipScorer, dino.DinoScorer]) -> None:
    found = evaluation.answers("exact", perfect, edits("background"), judges, 0)
    assert all(one.success and not one.reason for one in found)
    table = evaluation.summarised(found, ("background",))
    assert table["clip_dir"]["exact"]["background"] > 0.3
    assert table["router"]["exact"]["background"] == 0.0  # it was told "local"
    assert 0 < table["l1"]["exact"]["background"] < 0.5


def test_every_task_weighs_the_same_and_held_out_ones_do_not_count() -> None:
    def one(task: str, success: bool) -> EvalRecord:
        blank = {"instruction": "", "source_caption": "", "target_caption": "", "seed": 0, "source": b"", "output": b""}
        rest = {"system": "s", "given_task": task, "exact": None, "reason": "", "success": success}
        return EvalRecord(task=task, **blank, **rest, scores=dict.fromkeys(evaluation.METRICS, 0.5))  # type: ignore[arg-type]

    found = [one("remove", True)] * 3 + [one("add", False)] + [one("contour", True)] * 4
    table = evaluation.summarised(found, ("remove", "add", "contour"))["edit_success"]["s"]
    assert table == {"overall": 0.5, "remove": 1.0, "add": 0.0, "contour": 1.0}


@dataclass
class Fake(evaluation.Systems):
    calls: int = 0

    def __init__(self, params: evaluation.EvaluationParams, root: Path) -> None:
        super().__init__(params, root)

    def told(self, some: benchmark.Benchmark, seeds: list[int]) -> tuple[benchmark.Pictures, list[str]]:
        Fake.calls += 1
        if Fake.calls == 2:
            raise KeyboardInterrupt
        return perfect(some, seeds)


@pytest.fixture
def params() -> evaluation.EvaluationParams:
    found = load(evaluation.EvaluationParams, "evaluation", ROOT / "params.yaml")
    world = found.world.model_copy(update={name: str(ROOT / getattr(found.world, name)) for name in ("clip", "dino")})
    few = {"systems": ("identity", "told"), "tasks": ("remove", "detect"), "n_edits": 3, "columns": 2, "world": world}
    return found.model_copy(update=few)


def test_a_stopped_evaluation_goes_on_where_it_was(
    tmp_path: Path, params: evaluation.EvaluationParams, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("editor", "router", "inversion"):
        (tmp_path / "models" / name).mkdir(parents=True)
    monkeypatch.setattr(evaluation, "Systems", Fake)
    with pytest.raises(KeyboardInterrupt):
        evaluation.run(params, tmp_path)
    assert not (tmp_path / evaluation.OUT).exists()
    evaluation.run(params, tmp_path)
    assert Fake.calls == 3  # remove, detect stopped, detect again
    out = tmp_path / evaluation.OUT
    table = json.loads((out / "metrics.json").read_text())["edit_success"]
    assert table == {
        "identity": {"overall": 0.0, "remove": 0.0, "detect": 0.0},
        "told": {"overall": 1.0, "remove": 1.0, "detect": 1.0},
    }
    assert len(list(read_folder(out, EvalRecord, verify=True))) == 12
    assert "overall             0.00      1.00" in capsys.readouterr().out
    assert (out / "contact_sheet.png").stat().st_size > 5000


def test_unknown_systems_and_tasks_are_named(tmp_path: Path, params: evaluation.EvaluationParams) -> None:
    with pytest.raises(ParamsError, match="want systems out of identity, emuedit, told; got 'magic'"):
        evaluation.Systems(params, tmp_path)["magic"]
    with pytest.raises(ValueError, match=r"want a task out of .*; got 'fly'"):
        evaluation.run(params.model_copy(update={"tasks": ("fly",)}), tmp_path)


def test_seeds_belong_to_the_edit_not_to_the_system(judges: tuple[clip.ClipScorer, dino.DinoScorer]) -> None:
    one, other = (evaluation.answers(name, nothing, edits("add", 2), judges, 3) for name in ("a", "b"))
    assert [answer.seed for answer in one] == [answer.seed for answer in other]
    assert len({answer.seed for answer in one}) == 2
    assert replace(one[0], system="b").id == other[0].id


def test_house_params_are_complete() -> None:
    assert isinstance(load(evaluation.EvaluationParams, "evaluation", ROOT / "params.yaml"), config.Params)


def test_pictures_of_one_task_fill_the_sheet(
    judges: tuple[clip.ClipScorer, dino.DinoScorer], params: evaluation.EvaluationParams
) -> None:
    found = evaluation.answers("told", perfect, edits("remove", 3), judges, 0)
    found += evaluation.answers("told", nothing, edits("detect", 3), judges, 0)
    shown = np.asarray(evaluation.contact_sheet(found, params, evaluation.summarised(found, ("remove", "detect"))))
    assert shown.shape[0] > 3 * 128
    green, red = (38, 152, 84), (206, 56, 48)
    assert (shown == green).all(-1).any()
    assert (shown == red).all(-1).any()
