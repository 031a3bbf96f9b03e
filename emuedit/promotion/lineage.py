"""Lineage of a registered version: run, commit, and the chain of stages back to the captions, from its own `dvc.lock`.

They are logged to the run at registration, so the chain can be read on any machine: `dvc.lock` with the hashes of all inputs and
outputs, and params, pipeline and package lock as they were when the retrain started.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from emuedit.dvc_lock import LOCK_FILE, hash_of, output_hashes, parse_stages
from emuedit.promotion import version_card
from emuedit.tracking import runs
from emuedit.tracking.registry import ModelVersion, RegistryError

FOLDER = "lineage"
"""Folder of the run's artifacts."""
FILES = (LOCK_FILE, "dvc.yaml", "params.yaml", "uv.lock")
_CODE = (".py", "emuedit", "flows")
_NO_OUT = "an input"
_ADVICE = "restore the store, or register it again with `uv run retrain`"


@dataclass(frozen=True)
class Origin:
    """A file or folder, its hash and its inputs."""

    path: str
    md5: str
    stage: str = ""
    """Stage that produced it; empty for other files: code, models, imported data."""
    command: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple["Origin", ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def stages(self) -> Iterator[str]:
        """Its stage and all upstream stages; a stage shared by several inputs is repeated."""
        if self.stage:
            yield self.stage
        for source in self.inputs:
            yield from source.stages()


def read_origins(stages: Mapping[str, Any], paths: list[str]) -> list[Origin]:
    """The lineage of outputs of the stages in a `dvc.lock`. Raises RegistryError for a path that is not an output of one."""
    makers = {out["path"]: (name, out) for name, stage in stages.items() for out in stage.get("outs", ())}
    origins: dict[str, Origin] = {}

    def find(path: str, md5: str) -> Origin:
        if path not in origins:
            if path not in makers:
                return Origin(path, md5)
            name, out = makers[path]
            stage = stages[name]
            inputs = tuple(find(dep["path"], hash_of(dep)) for dep in stage.get("deps", ()))
            params = {key: value for values in stage.get("params", {}).values() for key, value in values.items()}
            origins[path] = Origin(path, hash_of(out), name, str(stage.get("cmd", "")), params, inputs)
        return origins[path]

    if missing := [path for path in paths if path not in makers]:
        raise RegistryError(f"want {', '.join(missing)} among the outputs of dvc.lock, got {', '.join(makers)}")
    return [find(path, "") for path in paths]


def of_version(version: ModelVersion) -> list[Origin]:
    """The lineage of the parts of a registered version.

    Raises RegistryError for a version without lineage files, and LockFileError for a damaged one.
    """
    stages = parse_stages(read_file(version, LOCK_FILE), f"that of version {version.number}", _ADVICE)
    outputs = output_hashes(stages)
    tagged = [key.removeprefix("dvc.") for key in version.tags if key.startswith("dvc.")]
    registered = [path for path in tagged if path in outputs and path.startswith("models/")]
    return read_origins(stages, sorted(registered) or sorted(outputs))


def read_file(version: ModelVersion, name: str) -> str:
    """One of `FILES` as logged when the version was registered."""
    text = runs.read_text(version.run_id, f"{FOLDER}/{name}")
    if text is None:
        raise RegistryError(f"version {version.number} has no {name} in the artifact store; {_ADVICE}")
    return text


def format_text(version: ModelVersion, origins: list[Origin]) -> str:
    """The version and its lineage as an indented list without repetitions."""
    tags = version.tags
    branch_commit = tags.get("git.branch_commit", "")
    lines = [
        f"{version.uri}  {tags.get('gate.state', '')}".rstrip(),
        f"  run      {version.run_id}",
        f"  commit   {tags.get('git.commit', 'none')} ({version_card.describe_changes(tags)})",
        *([f"  branch   {tags.get('git.branch', '')} at {branch_commit}"] if branch_commit else []),
        f"  packages uv.lock {tags.get('uv.lock', '-')}",
        f"  parent   {tags.get('parent', '') or 'none: trained from the base model'}",
    ]
    printed: set[str] = set()
    for origin in origins:
        lines += _lines(origin, 1, printed)
    return "\n".join(lines)


def format_json(version: ModelVersion, origins: list[Origin]) -> str:
    """The complete lineage as JSON."""
    head = {"version": version.number, "run_id": version.run_id, "tags": dict(version.tags)}
    return json.dumps(head | {"origins": [origin.to_dict() for origin in origins]}, indent=1)


def format_mermaid(version: ModelVersion, origins: list[Origin]) -> str:
    """A Mermaid diagram, which code hosts render: stages as boxes, their data as rounded boxes."""
    lines, printed = ["flowchart LR", f'    version["{version.uri}"]'], set()

    def draw(origin: Origin) -> str:
        node = "n" + "".join(character if character.isalnum() else "_" for character in origin.path)
        if node not in printed:
            printed.add(node)
            lines.append(f'    {node}("{origin.path}<br>{origin.md5[:8]}")')
            if origin.stage:
                lines.append(f'    {node}_stage["{origin.stage}"] --> {node}')
            for source in origin.inputs:
                if not _is_code(source.path):
                    lines.append(f"    {draw(source)} --> {node}_stage")
        return node

    for origin in origins:
        lines.append(f"    {draw(origin)} --> version")
    return "\n".join(lines)


def _lines(origin: Origin, depth: int, printed: set[str]) -> Iterator[str]:
    indent = "  " * depth
    maker = f"by {origin.stage}" if origin.stage else _NO_OUT
    if origin.path in printed and origin.stage:
        yield f"{indent}{origin.path}  {origin.md5[:12]}  {maker}, as above"
        return
    printed.add(origin.path)
    yield f"{indent}{origin.path}  {origin.md5[:12]}  {maker}"
    code = sum(_is_code(source.path) for source in origin.inputs)
    if code:
        yield f"{indent}  code: {code} files and folders"
    for source in origin.inputs:
        if not _is_code(source.path):
            yield from _lines(source, depth + 1, printed)


def _is_code(path: str) -> bool:
    return path.endswith(_CODE[0]) or path.split("/")[0] in _CODE[1:]
