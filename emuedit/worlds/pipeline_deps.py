"""Rewrite the deps of `dvc.yaml` for the models of another world; all other lines and comments are kept."""

import re
import textwrap
from collections.abc import Mapping
from typing import Any

import yaml

from emuedit.config import ParamsError
from emuedit.reference_check import MODELS_OR_FOLDERS

_REFERENCES = {f"${{world.{key}}}" for key in MODELS_OR_FOLDERS}
_STAGE = re.compile(r"^  ([\w-]+):[ \t]*(?:#.*)?$", re.MULTILINE)
_DEPS = re.compile(r"^(?P<head>    deps: )\[[^\]]*\]", re.MULTILINE)
_TOY = "toyworld/"
_WIDTH, _INDENT = 127, 11


def rewrite(text: str, local: Mapping[str, bool]) -> str:
    """`dvc.yaml` with `${world.X}` in the deps of exactly the stages that have the param world.X, if `local[X]`.

    local: key of `world` -> whether it is a local file or folder. Deps of the toy world are removed. Raises ParamsError for a
    file whose deps must change but are not a plain list.
    """
    stages: dict[str, Any] = yaml.safe_load(text)["stages"]
    new_deps = {name: _new_deps(stage, local) for name, stage in stages.items() if isinstance(stage, dict) and "deps" in stage}
    headings = list(_STAGE.finditer(text))
    pieces, end = [text[: headings[0].start()] if headings else text], len(text)
    for heading, following in zip(headings, [*headings[1:], None], strict=True):
        piece = text[heading.start() : following.start() if following else end]
        deps = new_deps.get(heading[1])
        pieces.append(piece if deps is None or deps == stages[heading[1]]["deps"] else _with_deps(piece, deps))
    rewritten = "".join(pieces)
    for name, deps in new_deps.items():
        if _read_deps(rewritten, name) != deps:
            raise ParamsError(f"dvc.yaml: the deps of {name} are not a plain list in brackets; first replace them by {deps}")
    return rewritten


def _new_deps(stage: Mapping[str, Any], local: Mapping[str, bool]) -> list[Any]:
    kept = [dep for dep in stage["deps"] if not (isinstance(dep, str) and (dep.startswith(_TOY) or dep in _REFERENCES))]
    return kept + [
        f"${{world.{key}}}" for key in MODELS_OR_FOLDERS if f"world.{key}" in stage.get("params", ()) and local.get(key, False)
    ]


def _with_deps(piece: str, deps: list[Any]) -> str:
    """A stage's lines with new deps; unchanged if the deps are not a list in brackets."""
    line = ", ".join(f'"{dep}"' if "${" in str(dep) else str(dep) for dep in deps)
    filled = textwrap.fill(line, _WIDTH - _INDENT, break_long_words=False, break_on_hyphens=False)
    indented = filled.replace("\n", "\n" + " " * _INDENT)
    return _DEPS.sub(lambda match: f"{match['head']}[{indented}]", piece, count=1)


def _read_deps(text: str, stage: str) -> Any:
    """None if the text is not valid YAML."""
    try:
        return yaml.safe_load(text)["stages"][stage]["deps"]
    except (yaml.YAMLError, KeyError, TypeError):
        return None
