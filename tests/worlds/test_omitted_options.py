"""A second `emuedit init` with fewer options: those that are left out have the values of the first one."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from emuedit import cli
from emuedit.worlds.photo_world import PRESETS

LLM = "http://localhost:8000/v1#model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def init(*arguments: str) -> int:
    return cli.main(["init", *arguments, "--no-pin", "--overwrite"])


def read_params(folder: Path) -> dict[str, Any]:
    params: dict[str, Any] = yaml.safe_load((folder / "params.yaml").read_text())
    return params


def edit_params(folder: Path, old: str, new: str) -> None:
    text = (folder / "params.yaml").read_text()
    assert text.count(old) == 1, old
    (folder / "params.yaml").write_text(text.replace(old, new))


@pytest.mark.slow
def test_options_that_are_left_out_have_the_values_of_the_first_run(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They were reset to their defaults: `--n-captions` alone replaced preset, base model, LLM and the radii of the masks."""
    (clone / "lines.csv").write_text("text\na red car\na dog\na house\n")
    options = ["--column", "text", "--name", "shop", "--benchmark", "edits", "--preset", "sdxl-512", "--llm", LLM]
    assert init("lines.csv", *options, "--dino", f"owner/dino@{COMMIT}") == 0
    first = read_params(clone)
    assert "taken from" not in capsys.readouterr().out
    assert init("--n-captions", "2") == 0
    second, output = read_params(clone), capsys.readouterr().out
    assert second["world"] == first["world"]
    assert (first["instructions"]["n_captions"], second["instructions"].pop("n_captions")) == (3, 2)
    assert second["instructions"] | {"n_captions": 3} == first["instructions"]
    assert {key: second[key] for key in ("captions", "pairs")} == {key: first[key] for key in ("captions", "pairs")}
    assert second["train"]["preset"] == "sdxl-512"
    line = (
        "- taken from the earlier params.yaml: lines.csv, --column text, --name shop, --benchmark edits, --preset sdxl-512, "
        f"--dino owner/dino@{COMMIT}, --llm {LLM}; an option replaces its value"
    )
    assert sorted(find_line(output, "taken from").replace(": ", ", ").replace("; ", ", ").split(", ")) == sorted(
        line.replace(": ", ", ").replace("; ", ", ").split(", ")
    )
    assert init("--llm", "https://example.org/v1#other") == 0
    third, output = read_params(clone), capsys.readouterr().out
    assert third["world"] == first["world"] | {"llm": "https://example.org/v1#other"}, "an option wins"
    assert third["instructions"]["n_captions"] == 2
    assert "--n-captions 2" in find_line(output, "taken from")
    assert "--llm" not in find_line(output, "taken from")


def find_line(output: str, text: str) -> str:
    (line,) = [line for line in output.splitlines() if text in line]
    return line


@pytest.mark.slow
def test_a_new_preset_replaces_the_base_model_of_the_earlier_preset_only(clone: Path) -> None:
    base_model = PRESETS["sd15-512"].base_model
    assert init("captions.txt", "--base-model", f"{base_model}@{COMMIT}") == 0
    assert init("--preset", "sd15-256") == 0
    assert read_params(clone)["world"]["base_model"] == f"{base_model}@{COMMIT}", "of the same model, its commit stays"
    assert init("--preset", "sdxl-512") == 0
    assert read_params(clone)["world"]["base_model"] == PRESETS["sdxl-512"].base_model
    assert init("--base-model", "owner/xl") == 0
    assert init("--preset", "sd15-512") == 0
    assert read_params(clone)["world"]["base_model"] == "owner/xl"


@pytest.mark.slow
def test_values_that_were_changed_by_hand_are_taken_too(clone: Path) -> None:
    (clone / "captions.txt").write_text("".join(f"a dog number {number} at a lake\n" for number in range(2000)))
    assert init("captions.txt") == 0
    edit_params(clone, "dino: facebook/dinov2-base", "dino: owner/dino")
    edit_params(clone, "n_captions: 500 ", "n_captions: 1500 ")
    assert init("captions.txt") == 0
    params = read_params(clone)
    assert (params["world"]["dino"], params["instructions"]["n_captions"], params["train"]["steps"]) == ("owner/dino", 1500, 7300)
    edit_params(clone, "preset: sd15-512", "preset: emu-edit")
    assert init() == 0
    assert read_params(clone)["train"]["preset"] == "sd15-512", "not a preset of init"


@pytest.mark.slow
def test_a_computed_number_of_captions_is_computed_again(clone: Path) -> None:
    assert init("captions.txt") == 0
    (clone / "captions.txt").write_text("".join(f"a dog number {number} at a lake\n" for number in range(40)))
    assert init() == 0
    assert read_params(clone)["instructions"]["n_captions"] == 40


def test_the_first_run_needs_captions(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (clone / "params.yaml").read_bytes()
    assert init("--name", "shop") == 2
    assert "want your captions, got none and no earlier params.yaml that names them" in capsys.readouterr().err
    assert (clone / "params.yaml").read_bytes() == before


@pytest.mark.slow
def test_models_that_were_not_pinned_stay_so(
    clone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pinned by a later run, `world.llm` had another name, and all instructions and pairs were made again."""
    assert init("captions.txt") == 0
    first = read_params(clone)

    class Hub:
        def model_info(self, name: str, timeout: float) -> Any:
            return type("Info", (), {"sha": COMMIT})

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("emuedit.worlds.model_access.check", lambda *_, **__: ([], ""))
    capsys.readouterr()
    assert cli.main(["init", "--dino", first["world"]["dino"], "--overwrite"]) == 0
    assert read_params(clone)["world"] == first["world"] | {"dino": f"{first['world']['dino']}@{COMMIT}"}
    note = find_line(capsys.readouterr().out, "not pinned to a commit, as in the earlier params.yaml")
    assert f"--llm {first['world']['llm']}" in note
    assert "--dino" not in note
