"""Presets: settings of known trainings by name, in `presets/`, where every number has its source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emuedit import config
from emuedit.name_hints import closest_match

FOLDER = Path(__file__).with_name("presets")


def preset_names() -> tuple[str, ...]:
    """Names that `train.preset` may have."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.yaml")))


def with_preset(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings on top of the preset that they name; in nested settings too, what is given wins. Raises ParamsError."""
    name = settings.get("preset")
    if name is None:
        return dict(settings)
    if name not in preset_names():
        raise config.ParamsError(
            f"want a preset out of {', '.join(preset_names())}, got {name!r}{closest_match(str(name), preset_names())}"
        )
    return config.merge(config.read_yaml(FOLDER / f"{name}.yaml"), settings)
