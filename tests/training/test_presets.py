import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from emuedit import config
from emuedit.stages.train import TrainParams
from emuedit.training.presets import FOLDER, preset_names, with_preset

PARAMS = Path(__file__).parents[2] / "params.yaml"


def load(tmp_path: Path, **train: Any) -> TrainParams:
    content = yaml.safe_load(PARAMS.read_text()) | {"train": train}
    (tmp_path / "params.yaml").write_text(json.dumps(content))
    return config.load(TrainParams, "train", tmp_path / "params.yaml")


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_complete_training_and_names_its_sources(name: str, tmp_path: Path) -> None:
    params = load(tmp_path, preset=name)
    assert params.batch_size % params.accumulation_steps == 0
    assert params.loss_weights.change_loss_weight > 0 or not params.change_mask, "an untrained head blends half of the picture in"
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ")
    assert any(word in lines[0] + lines[1] for word in ("arXiv", "diffusers", "docs/log.md")), "where its numbers come from"


@pytest.mark.parametrize("name", sorted(set(preset_names()) - {"toy"}))
def test_a_published_training_states_what_the_defaults_would_add_to_it(name: str) -> None:
    """A default of ours passed as published: Emu Edit's Adam had weight decay. `toy` is ours."""
    lines = {line.split(":")[0]: line for line in (FOLDER / f"{name}.yaml").read_text().splitlines() if not line.startswith("#")}
    for key in ("weight_decay", "max_grad_norm", "ema_decay", "max_aspect_ratio", "flip"):
        assert key in lines, f"{name}: {key} is {TrainParams.model_fields[key].default}, whose source is not named"
    if name == "emu-edit":
        assert all("# ours" in lines[key] for key in ("max_grad_norm", "ema_decay", "flip"))


def test_the_training_of_emu_edit_is_adam_without_weight_decay(tmp_path: Path) -> None:
    assert load(tmp_path, preset="emu-edit").weight_decay == 0


def test_the_presets_that_the_documentation_names_exist() -> None:
    assert set(preset_names()) == {"toy", "sd15-256", "sd15-512", "sdxl-512", "emu-edit"}


def test_the_toy_preset_is_the_default_training_from_scratch(tmp_path: Path) -> None:
    """The default continues the base editor, in fewer and smaller steps."""
    default, scratch = config.load(TrainParams, "train", PARAMS), load(tmp_path, preset="toy")
    assert (default.start, scratch.start) == ("base_editor", "base_model")
    assert default.steps < scratch.steps
    values, others = default.model_dump(), scratch.model_dump()
    different = {name for name in values if values[name] != others[name]}
    assert different == {"preset", "start", "start_share", "steps", "lr", "lr_mult_new", "warmup_steps", "decay_share"}


def test_what_is_given_wins_over_the_preset_also_inside_of_nested_settings() -> None:
    settings = with_preset({"preset": "toy", "steps": 7, "loss_weights": {"mask_balance": 0.25}})
    assert settings["steps"] == 7
    assert settings["loss_weights"]["mask_balance"] == 0.25
    assert settings["loss_weights"]["change_loss_weight"] == with_preset({"preset": "toy"})["loss_weights"]["change_loss_weight"]


def test_an_unknown_preset_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(config.ParamsError, match=r"want one of the presets emu-edit, .*toy, got 'sd15-521'.*sd15-512"):
        load(tmp_path, preset="sd15-521")
