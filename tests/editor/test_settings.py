import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from emuedit import EditSettings
from emuedit.editor.settings import SettingsError

DEFAULTS = {
    "steps": 20, "image_guidance_scale": 1.5, "guidance_scale": 5.0, "guidance_from": 0.0, "guidance_to": 1.0,
    "guidance_rescale": 0.0, "preserve": 1.0, "composite": 1, "border_px": 2,
    "change_threshold": 0.03, "background_threshold": 0.15, "against_reconstruction": 1, "resolution": 0, "crop": 0, "seed": 0,
}  # fmt: skip
BOUNDS: dict[str, tuple[float, float]] = {
    "steps": (1, 1000), "image_guidance_scale": (0, 100), "guidance_scale": (0, 100), "guidance_from": (0, 1),
    "guidance_to": (0, 1), "guidance_rescale": (0, 1),
    "preserve": (0, 1), "composite": (0, 1), "border_px": (0, 64), "change_threshold": (0, 3), "background_threshold": (0, 3),
    "against_reconstruction": (0, 1), "resolution": (0, 16384), "crop": (0, 1), "seed": (0, 2**63 - 1),
}  # fmt: skip
RENAMED = {
    "s_I": "image_guidance_scale", "s_T": "guidance_scale", "phi": "guidance_rescale", "hold": "preserve",
    "alpha": "change_threshold",
}  # fmt: skip
INTEGERS = ("steps", "composite", "border_px", "against_reconstruction", "resolution", "crop", "seed")


def test_the_defaults_are_those_of_the_paper_or_our_own() -> None:
    assert EditSettings().model_dump() == DEFAULTS


def test_every_setting_has_bounds_and_a_line_of_documentation() -> None:
    assert set(EditSettings.model_fields) == set(BOUNDS)
    for name, field in EditSettings.model_fields.items():
        assert field.description, name
        assert field.annotation in (int, float), f"{name}: the command line and the model's signature take numbers only"


@pytest.mark.parametrize("name", BOUNDS)
def test_values_on_the_bounds_are_accepted_and_values_beyond_are_not(name: str) -> None:
    lowest, highest = BOUNDS[name]
    for value in BOUNDS[name]:
        assert getattr(EditSettings().with_changes({name: value}), name) == value
    step = 1 if name in INTEGERS else 1e-6
    for value in (lowest - step, highest + step):
        with pytest.raises(SettingsError, match=f"^{name}: Input should be .*got {value}"):
            EditSettings().with_changes({name: value})
        with pytest.raises(ValidationError, match=name):
            EditSettings(**{name: value})


def test_guidance_must_not_end_before_it_starts() -> None:
    settings = EditSettings(guidance_from=0.25, guidance_to=0.25)
    with pytest.raises(SettingsError, match=r"^guidance_to: .*want guidance_to of at least guidance_from, 0.25; .*, got 0.2$"):
        settings.with_changes({"guidance_to": 0.2})
    with pytest.raises(SettingsError, match=r"^guidance_to: .*at least guidance_from, 0.5; lower guidance_from, got 0.25$"):
        settings.with_changes({"guidance_from": 0.5})
    with pytest.raises(ValidationError, match="guidance_to"):
        EditSettings(guidance_from=0.5, guidance_to=0.25)


@pytest.mark.parametrize("name", sorted(set(BOUNDS) - set(INTEGERS)))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(name: str, value: float) -> None:
    with pytest.raises(SettingsError, match=name):
        EditSettings().with_changes({name: value})


@pytest.mark.parametrize(("name", "value"), [("steps", 2.5), ("steps", "12"), ("seed", True), ("preserve", "1"), ("steps", None)])
def test_values_of_another_type_are_refused(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=f"^{name}: Input should be a valid"):
        EditSettings().with_changes({name: value})


def test_an_integer_is_accepted_for_a_float() -> None:
    assert EditSettings().with_changes({"guidance_scale": 4}).guidance_scale == 4.0


def test_numbers_of_numpy_are_accepted() -> None:
    changed = EditSettings().with_changes({"seed": np.int64(3), "steps": np.uint8(7), "preserve": np.float32(0.5)})
    assert changed == EditSettings(seed=3, steps=7, preserve=0.5)
    assert (type(changed.seed), type(changed.preserve)) == (int, float)
    for value in (np.bool_(True), np.float32(3)):
        with pytest.raises(SettingsError, match=r"^seed: Input should be a valid integer"):
            EditSettings().with_changes({"seed": value})


def test_every_wrong_value_is_named() -> None:
    with pytest.raises(SettingsError, match=r"steps: .*got 0; preserve: .*got 2"):
        EditSettings().with_changes({"steps": 0, "preserve": 2})


@pytest.mark.parametrize("old_name", RENAMED)
def test_an_old_name_is_an_error_that_gives_the_new_one(old_name: str) -> None:
    with pytest.raises(SettingsError, match=f"got '{old_name}'; it is now '{RENAMED[old_name]}'"):
        EditSettings().with_changes({old_name: 1.0})


def test_an_unknown_name_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"want settings from steps, .*, seed; got 'guidance_scal'; did you mean 'guidance_"):
        EditSettings().with_changes({"guidance_scal": 3.0})
    with pytest.raises(SettingsError, match=r"got 'brightness'$"):
        EditSettings().with_changes({"brightness": 3.0})
    with pytest.raises(ValidationError, match="brightness"):
        EditSettings(brightness=3.0)


def test_changes_make_new_settings_and_leave_the_old_ones() -> None:
    settings = EditSettings(steps=7, seed=3)
    changed = settings.with_changes({"guidance_scale": 2.0})
    assert changed.model_dump() == DEFAULTS | {"steps": 7, "seed": 3, "guidance_scale": 2.0}
    assert settings.model_dump() == DEFAULTS | {"steps": 7, "seed": 3}
    assert settings.with_changes({}) == settings


def test_settings_are_frozen() -> None:
    settings = EditSettings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.steps = 3  # type: ignore[misc]
