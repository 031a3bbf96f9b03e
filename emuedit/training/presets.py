"""Presets: named settings of known trainings, in `presets/`, with a source for every number."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emuedit import config
from emuedit.name_hints import closest_match

FOLDER = Path(__file__).with_name("presets")


def preset_names() -> tuple[str, ...]:
    """Valid values of `train.preset`."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.yaml")))


def with_preset(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Merge settings over their preset; given values take precedence, also nested ones. Raises ParamsError."""
    name = settings.get("preset")
    if name is None:
        return dict(settings)
    if name not in preset_names():
        raise config.ParamsError(
            f"want one of the presets {', '.join(preset_names())}, got {name!r}{closest_match(str(name), preset_names())}"
        )
    return config.merge(config.read_yaml(FOLDER / f"{name}.yaml"), settings)
