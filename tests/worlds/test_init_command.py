"""`emuedit init` in a copy of the project's files: what it writes, what it says, and what it refuses."""

import csv
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import yaml
from huggingface_hub.errors import RepositoryNotFoundError
from PIL import Image

from emuedit import cli, config, params_check, reference_check
from emuedit.stages.dataset import DatasetParams
from emuedit.stages.inversion import InversionParams
from emuedit.stages.pairs import PairsParams
from emuedit.stages.train import TrainParams
from emuedit.tasks import TASKS
from emuedit.worlds import hub_pins
from tests.repository import ROOT, STAGES

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOCAL = {
    f"--{key.replace('_', '-')}": str(ROOT / "toyworld/weights" / key)
    for key in ("base_model", "detector", "segmenter", "clip", "dino", "depth", "t5")
}


def init(*arguments: str) -> int:
    return cli.main(["init", "captions.txt", *arguments])


def with_local_models() -> list[str]:
    return [word for option in LOCAL.items() for word in option]


def write_benchmark(folder: Path, counts: dict[str, int]) -> None:
    folder.mkdir()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "a.png")
    with (folder / "edits.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["image", "task", "instruction", "input_caption", "output_caption"])
        table.writerows(["a.png", task, "do it", "before", "after"] for task, n in counts.items() for _ in range(n))


def read_params(folder: Path) -> dict[str, Any]:
    params: dict[str, Any] = yaml.safe_load((folder / "params.yaml").read_text())
    return params


@pytest.mark.slow
def test_what_is_written_passes_the_check_of_all_params(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_benchmark(clone / "benchmark", {"local": 40, "remove": 20, "contour": 30, "detect": 15})
    (clone / "benchmark/judge.yaml").write_text("{clip: a/b, dino: c/d}\n")
    assert init(*with_local_models(), "--llm", "http://localhost:8000/v1#model") == 0
    params_check.check(clone)
    output = capsys.readouterr().out
    assert "still missing" not in output
    assert "evaluation.n_edits: 20, the number of benchmark edits of remove" in output
    assert "evaluation.tasks: without {'contour': 30, 'detect': 15} of the benchmark" in output
    params = read_params(clone)
    assert params["evaluation"]["tasks"] == ["local", "remove"]
    assert params["instructions"]["n_captions"] == 3
    assert params["captions"]["n_rows"] >= 10_000, "captions that are added later are read, too"
    assert params["world"]["llm"] == "http://localhost:8000/v1#model"
    filters = config.load(DatasetParams, "dataset").filters_for
    resembling = [task.name for task in TASKS if task.annotated and "clip_image" in filters(task.name)]
    assert not resembling, "a map does not resemble its photograph"
    assert config.load(InversionParams, "inversion").enabled is False


@pytest.mark.slow
def test_masks_have_the_size_of_the_base_models_pictures(clone: Path) -> None:
    expected = {"sd15-512": (512, 30, 512), "sd15-256": (512, 30, 256), "sdxl-512": (1024, 60, 512)}
    for preset, (size_px, radius_px, resolution) in expected.items():
        assert init("--preset", preset, "--overwrite", "--no-pin") == 0
        recipe = config.load(PairsParams, "pairs").recipes["local"][0]
        assert recipe.mask is not None
        assert recipe.mask.radius_px == radius_px
        assert f"at the {size_px} px of its base model" in (clone / "params.yaml").read_text()
        train = config.load(TrainParams, "train")
        assert (train.resolution, train.steps) == (resolution, 500), "three captions do not need the thousands of the preset"
        assert read_params(clone)["evaluation"]["settings"] == {"resolution": resolution}
    assert init(*with_local_models(), "--overwrite", "--no-pin") == 0
    recipe = config.load(PairsParams, "pairs").recipes["local"][0]
    assert recipe.mask is not None
    assert recipe.mask.radius_px == 4, "the toy world's base model makes pictures of 64 px"


@pytest.mark.slow
def test_models_here_are_deps_and_those_of_the_hub_and_of_the_toy_world_are_not(clone: Path) -> None:
    before = (clone / "dvc.yaml").read_text()
    assert init("--clip", LOCAL["--clip"], "--no-pin") == 0
    text = (clone / "dvc.yaml").read_text()
    stages = yaml.safe_load(text)["stages"]
    assert "${world.segmenter}" in stages["pairs"]["deps"], "it is downloaded to a file later"
    stages["pairs"]["deps"].remove("${world.segmenter}")
    users = {name for name, stage in stages.items() if "${world.clip}" in stage["deps"]}
    assert users == {"pairs", "validation", "evaluation"}
    assert not [dep for stage in stages.values() for dep in stage["deps"] if "toyworld" in dep or "world.dino" in dep]
    for name, stage in stages.items():
        kept = [dep for dep in STAGES[name]["deps"] if not dep.startswith("toyworld/")]
        assert [dep for dep in stage["deps"] if dep != "${world.clip}"] == kept
        assert {key: value for key, value in stage.items() if key != "deps"} == {
            key: value for key, value in STAGES[name].items() if key != "deps"
        }
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        line for line in before.splitlines() if line.startswith("#")
    ]
    assert text.count("# and each folder of dataset.mix") == before.count("# and each folder of dataset.mix")
    assert init("--dino", LOCAL["--dino"], "--clip", "ViT-L-14/openai", "--no-pin", "--overwrite") == 0
    stages = yaml.safe_load((clone / "dvc.yaml").read_text())["stages"]
    assert "${world.dino}" in stages["evaluation"]["deps"], "a second time it works on its own file"
    assert "${world.clip}" not in stages["evaluation"]["deps"]


def test_what_is_still_missing_is_listed(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert init() == 0
    output = capsys.readouterr().out
    assert re.search(r"not pinned to a commit, because the hub is unreachable \(\w+\): detector, dino, ", output)
    assert "world.segmenter: curl -LO https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth" in output
    assert "world.benchmark: want a folder with edits.csv, or a Python file, got none at benchmark\n" in output
    assert "write benchmark/edits.csv (docs/own-data.md), then run this again with --overwrite" in output
    assert "instructions.concurrency" not in output, "the default LLM is a model on this machine, which answers one at a time"
    assert read_params(clone)["world"]["dino"] == "facebook/dinov2-base"


def test_changes_that_git_does_not_have_are_not_lost(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (clone / "params.yaml").read_text() + "# mine\n"
    (clone / "params.yaml").write_text(text)
    assert init("--no-pin") == 2
    assert "have uncommitted changes; commit them, or add --overwrite" in capsys.readouterr().err
    assert (clone / "params.yaml").read_text() == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.txt"], r"want an existing file or folder of captions, got none at .*nothing.txt"),
        (["empty.csv"], "want one caption per line or row, got none in empty.csv"),
        (["table.csv"], r"want key 'caption' in table.csv, got \['text'\] in row 1; set captions.column .* or --column of"),
        (
            ["captions.txt", "--benchmark", "maps"],
            r"want at least 16 held-out edits \(promotion.min_edits\) of one of local, .*got {'contour': 2}",
        ),
    ],
)
def test_input_that_cannot_be_used_is_refused_and_nothing_is_written(
    clone: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_benchmark(clone / "maps", {"contour": 2})
    (clone / "empty.csv").write_text("caption\n")
    (clone / "table.csv").write_text("text\na dog\n")
    before = (clone / "params.yaml").read_bytes(), (clone / "dvc.yaml").read_bytes()
    assert cli.main(["init", *arguments, "--no-pin"]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert ((clone / "params.yaml").read_bytes(), (clone / "dvc.yaml").read_bytes()) == before


def test_edits_that_cannot_be_judged_do_not_count(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The gate then compared editors on a task, all edits of which failed."""
    write_benchmark(clone / "benchmark", {"local": 16, "depth": 20})
    table = clone / "benchmark/edits.csv"
    table.write_text(table.read_text().replace("depth,do it,before,after", "depth,do it,before,Before"))
    assert init("--no-pin") == 0
    assert read_params(clone)["evaluation"]["tasks"] == ["local"]
    assert "20 edits cannot be judged; `uv run emuedit benchmark benchmark` lists them" in capsys.readouterr().out


def test_git_ignores_weights_but_not_their_dvc_files(tmp_path: Path) -> None:
    """`dvc add` refuses a file that git ignores, and `git add -A` committed weights elsewhere."""
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    names = ["weights/sd15", "weights/sd15/unet/a.bin", "weights/sd15.dvc", "weights/.gitignore", "toyworld/weights/dino"]
    process = subprocess.run(["git", "check-ignore", *names], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.stdout.split() == names[:2]


def test_outside_of_a_clone_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert init() == 2
    assert f"want a clone of emuedit, got no params.yaml and no dvc.yaml in {tmp_path}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_hub_ids_are_pinned_and_other_names_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names_of_requests: list[str] = []

    class Hub:
        def model_info(self, name: str, timeout: float) -> Any:
            assert timeout <= 10
            names_of_requests.append(name)
            return type("Info", (), {"sha": COMMIT})

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    (tmp_path / "a/folder").mkdir(parents=True)
    names = {
        "base_model": "owner/name", "detector": f"owner/name@{COMMIT[::-1]}", "dino": "a/folder", "clip": "ViT-L-14/openai",
        "llm": "http://localhost/v1#owner/name", "segmenter": "weights/sam.pth",
    }  # fmt: skip
    pinned, note = hub_pins.pin(names, tmp_path)
    assert pinned == names | {"base_model": f"owner/name@{COMMIT}"}
    assert (names_of_requests, note) == (["owner/name"], "")


def test_a_repository_that_does_not_exist_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hub:
        def model_info(self, name: str, timeout: float) -> Any:
            answer = httpx2.Response(404, request=httpx2.Request("GET", "https://huggingface.co"))
            raise RepositoryNotFoundError(f"404 {name} {timeout}", response=answer)

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    with pytest.raises(
        config.ParamsError, match=r"world\.dino: 'owner/typo' is not a local path, and the hub returned: 404 .*--no-pin"
    ):
        hub_pins.pin({"dino": "owner/typo"}, tmp_path)


def test_odd_values_arrive_as_they_are(clone: Path) -> None:
    """Comments are aligned; a value may look like one."""
    odd = "légendes  # my: 'captions'.txt"
    (clone / odd).write_text("a dog at a lake\n")
    assert cli.main(["init", odd, "--name", "$1 # a: [b]", "--no-pin"]) == 0
    world = read_params(clone)["world"]
    assert (world["captions"], world["name"]) == (odd, "$1 # a: [b]")
    assert "légendes" in (clone / "params.yaml").read_text(encoding="utf-8")
    assert init("--name", "a\nb", "--overwrite") == 2


def test_lines_of_dvc_yaml_that_people_added_are_kept(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (clone / "dvc.yaml").read_text()
    text = text.replace("deps: [data/pairs, models/router,", "deps: [data/pairs, imported/ip2p, models/router,")
    text = text.replace(
        "  train:\n", "  my-own_stage:  # ours\n    cmd: touch a\n    outs: [a]\n  train:  # on the large machine\n"
    )
    (clone / "dvc.yaml").write_text(text)
    assert init("--no-pin", "--overwrite") == 0
    stages = yaml.safe_load((clone / "dvc.yaml").read_text())["stages"]
    assert "imported/ip2p" in stages["dataset"]["deps"]
    assert stages["my-own_stage"] == {"cmd": "touch a", "outs": ["a"]}
    assert "  train:  # on the large machine\n" in (clone / "dvc.yaml").read_text()
    assert not [dep for dep in stages["train"]["deps"] if dep.startswith("toyworld/")]
    capsys.readouterr()
    broken = text.replace("toyworld/weights/t5]", '"toyworld/weights/t5",  # the, small\n           "my,folder"]')
    (clone / "dvc.yaml").write_text(broken)
    assert init("--no-pin", "--overwrite") == 2
    assert (
        "dvc.yaml: the deps of router are not a plain list in brackets; first replace them by ['data/instructions'"
        in capsys.readouterr().err
    )
    assert (clone / "dvc.yaml").read_text() == broken


@pytest.mark.slow
def test_notes_say_what_the_models_ask_for(
    clone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (clone / "xl").mkdir()
    (clone / "xl/model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    assert init("--base-model", "xl", "--no-pin") == 0
    assert "train.preset: sd15-512 does not fit the architecture of xl" in capsys.readouterr().out
    assert init("--base-model", "owner/other", "--t5", "google/flan-t5-xl", "--no-pin", "--overwrite") == 0
    assert "masks are for images of 512 px; scale radius_px and sigma_px if owner/other differs" in capsys.readouterr().out
    assert read_params(clone)["router"]["lr"] == 5.0e-4
    downloaded = {("owner/other", "model_index.json", COMMIT): str(clone / "xl/model_index.json")}
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *names, revision: downloaded.get((*names, revision)))
    assert init("--base-model", f"owner/other@{COMMIT}", "--overwrite") == 0
    assert f"train.preset: sd15-512 does not fit the architecture of owner/other@{COMMIT}" in capsys.readouterr().out
    assert init("--segmenter", "facebook/sam-vit-base", "--no-pin", "--overwrite") == 0
    assert re.search("segmenter: want an .*'facebook/sam-vit-base'(?!.*segmenter.*remove it)", capsys.readouterr().out, re.S)


def test_a_model_that_is_changed_by_hand_later_is_missed_in_the_deps(clone: Path) -> None:
    def problems() -> list[str]:
        return [line for line in reference_check.problems(read_params(clone), stages, clone) if "dvc.yaml" in line]

    assert init("--clip", LOCAL["--clip"], "--segmenter", LOCAL["--segmenter"], "--no-pin") == 0
    stages = yaml.safe_load((clone / "dvc.yaml").read_text())["stages"]
    assert not problems()
    text = (clone / "params.yaml").read_text()
    (clone / "params.yaml").write_text(text.replace(f"clip: {LOCAL['--clip']}", "clip: owner/name"))
    assert problems()[0] == 'dvc.yaml: "${world.clip}" in the deps of pairs is not a local file (owner/name); remove it'
    (clone / "params.yaml").write_text(text.replace("dino: facebook/dinov2-base", f"dino: {LOCAL['--dino']}"))
    assert problems()[-1] == (
        'dvc.yaml: want "${world.dino}" in the deps of evaluation, since world.dino is a local file or folder'
    )


def test_steps_of_the_preset_are_for_many_pairs(clone: Path) -> None:
    (clone / "captions.txt").write_text("".join(f"a dog number {number} at a lake\n" for number in range(600)))
    assert init("--no-pin") == 0
    assert (read_params(clone)["train"]["steps"], read_params(clone)["instructions"]["n_captions"]) == (2400, 500)
    text = (clone / "params.yaml").read_text()
    assert "# 20 passes over about 1950 kept pairs; the preset's 15000 are for more pairs\n" in text
