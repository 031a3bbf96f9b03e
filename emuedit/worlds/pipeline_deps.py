"""Rewrite the deps of `dvc.yaml` for the models of another world; comments and all other lines stay as they are."""

import re
import textwrap
from collections.abc import Mapping
from typing import Any

import yaml

from emuedit.config import ParamsError

MODELS = ("base_model", "base_editor", "detector", "segmenter", "clip", "dino", "depth", "llm", "t5")
"""Keys of `world` that may name a file or folder, which is then a dep, or a model that is elsewhere, which cannot be one."""
_DEPS = re.compile(r"^(?P<head>    deps: )\[(?P<items>[^\]]*)\]", re.MULTILINE)
_STAGE = re.compile(r"^  (\w+):[ \t]*$", re.MULTILINE)
_TOY = "toyworld/"
_WIDTH, _INDENT = 127, 11


def rewrite(text: str, local: Mapping[str, bool]) -> str:
    """`dvc.yaml` with `${world.X}` in the deps of the stages that have the param world.X, where `local[X]`, and only there.

    local: key of `world` -> whether it names a file or folder here. Deps of the toy world are dropped. Raises ParamsError for a
    file in which a stage's deps are not a list in brackets, as they are in this project.
    """
    stages: dict[str, Any] = yaml.safe_load(text)["stages"]
    parts = _STAGE.split(text)
    for place in range(1, len(parts), 2):
        if (stage := stages.get(parts[place])) is None:
            continue
        if not _DEPS.search(parts[place + 1]):
            raise ParamsError(f"dvc.yaml: want the deps of {parts[place]} as a list in brackets; change the file by hand")
        local_keys = [key for key in MODELS if f"world.{key}" in stage.get("params", ()) and local.get(key, False)]
        parts[place + 1] = _DEPS.sub(lambda deps, local_keys=local_keys: _rewritten(deps, local_keys), parts[place + 1], count=1)
    return "".join(part if number % 2 == 0 else f"  {part}:" for number, part in enumerate(parts))


def _rewritten(deps: re.Match[str], local_keys: list[str]) -> str:
    references = [f'"${{world.{key}}}"' for key in MODELS]
    items = [item.strip() for item in deps["items"].split(",")]
    kept = [item for item in items if item and not item.startswith(_TOY) and item not in references]
    line = ", ".join([*kept, *(f'"${{world.{key}}}"' for key in local_keys)])
    return f"{deps['head']}[{textwrap.fill(line, _WIDTH - _INDENT, break_long_words=False, break_on_hyphens=False)}]".replace(
        "\n", "\n" + " " * _INDENT
    )
