"""`emuedit promote`, `rollback`, `models`, `lineage` and `rebuild`: the registry from the command line."""

import argparse
import datetime as dt
import json
import sys
import tempfile
from pathlib import Path
from textwrap import shorten
from typing import Any

from emuedit.promotion import lineage, promote, rebuild, version_card
from emuedit.tracking import alias_moves, registry
from emuedit.tracking.move_tickets import Move
from emuedit.tracking.registry import ModelVersion

_FORMATS = {"text": lineage.format_text, "json": lineage.format_json, "mermaid": lineage.format_mermaid}


def add_commands(commands: Any) -> None:
    """Add the commands to `emuedit`'s parser."""
    command = commands.add_parser("promote", help="promote a version if the promotion gate accepts it")
    command.set_defaults(run=_promote, needs_registry=True)
    command.add_argument("version", type=int, help="number of the version, as in models:/emuedit-editor/3")
    force_help = "promote it even if the promotion gate rejects it, and record the reason"
    command.add_argument("--force", metavar="REASON", default="", help=force_help)
    command = commands.add_parser("rollback", help="make the previous champion the champion again")
    command.set_defaults(run=_roll_back, needs_registry=True)
    command.add_argument("--to", type=int, metavar="N", help="roll back to version N instead of the previous champion")
    command.add_argument("--reason", default="", help="reason, for the history")
    command = commands.add_parser("models", help="list the registered versions")
    command.set_defaults(run=_list_models, needs_registry=True)
    command.add_argument("--moves", action="store_true", help="show the history of the champion instead")
    command.add_argument("--json", action="store_true", help="print JSON")
    command = commands.add_parser("lineage", help="show what a version was made from, back to the captions")
    command.set_defaults(run=_show_lineage, needs_registry=True)
    command.add_argument("version", type=int, help="number of the version")
    command.add_argument("--format", choices=tuple(_FORMATS), default="text", help="default: text")
    command = commands.add_parser("rebuild", help="reproduce a version from its commit, and compare the outputs")
    command.set_defaults(run=_rebuild, needs_registry=True)
    command.add_argument("version", type=int, help="number of the version")
    command.add_argument("--folder", type=Path, help="folder of the worktree, which is kept; default: a temporary one")


def format_models(versions: list[ModelVersion], aliases: dict[str, ModelVersion | None]) -> str:
    """A table of versions, the newest first: number, aliases, success, date, commit, data, reason and the gate's decision."""
    lines = [
        f"{'version':>7}  {'aliases':22}{'success':>7}  {'registered':16}  {'commit':8}  {'data':8}  {'why it ran':24}  gate"
    ]
    for version in reversed(versions):
        tags = version.tags
        names = " ".join(alias for alias, holder in aliases.items() if holder and holder.number == version.number)
        state = tags.get(promote.STATE_TAG, "")
        gate_text = f"{state}: {tags.get(promote.REASON_TAG, '')}".strip(": ")
        pairs, why = tags.get("dvc.data/dataset", "")[:8], shorten(tags.get(registry.RUN_REASON_TAG, "-"), 24, placeholder="...")
        lines.append(
            f"{version.number:7d}  {names:22}{tags.get(version_card.SUCCESS_TAG, '-'):>7}  {_date(version.created_ms):16}  "
            f"{tags.get('git.commit', '-')[:8]:8}  {pairs:8}  {why:24}  {gate_text}"
        )
    return "\n".join(lines) if versions else "No version is registered yet; run `uv run retrain`."


def format_moves(moves: list[Move]) -> str:
    """The history of the champion, the newest first."""
    lines = [f"{'move':>4}  {'time':16}  {'kind':9}  {'from':>4} {'to':>4}  {'state':9}  by, and why"]
    for move in reversed(moves):
        forced = "forced by " if move.is_forced else ""
        lines.append(
            f"{move.number:4d}  {_date(move.time_ms):16}  {move.kind:9}  {move.before or '-':>4} {move.champion:>4}  "
            f"{move.state:9}  {forced}{move.requested_by}: {move.reason}"
        )
    return "\n".join(lines) if moves else "No version was promoted yet."


def _promote(options: argparse.Namespace) -> int:
    outcome = promote.promote(registry.get_version(options.version), Path.cwd(), force_reason=options.force)
    if outcome.decision.rows:
        print(outcome.decision.table())
    print(f"version {options.version}: {'champion' if outcome.decision.promote else 'refused'}: {outcome.decision.reason}")
    return 0 if outcome.decision.promote else 1


def _roll_back(options: argparse.Namespace) -> int:
    move = promote.roll_back(options.to, options.reason)
    print(f"champion: version {move.champion}; previous: {f'version {move.before}' if move.before else 'none'}")
    return 0


def _list_models(options: argparse.Namespace) -> int:
    for move in alias_moves.repair():
        print(f"completed move {move.number} to version {move.champion}, whose process had died", file=sys.stderr)
    if options.moves:
        moves = alias_moves.history()
        print(json.dumps([vars(move) for move in moves], indent=1) if options.json else format_moves(moves))
        return 0
    versions, aliases = registry.all_versions(), alias_moves.current()
    if options.json:
        rows = [
            {"version": version.number, "run_id": version.run_id, "registered_ms": version.created_ms, "tags": dict(version.tags),
             "aliases": [alias for alias, holder in aliases.items() if holder and holder.number == version.number]}
            for version in versions
        ]  # fmt: skip
        print(json.dumps(rows, indent=1))
    else:
        print(format_models(versions, aliases))
    return 0


def _show_lineage(options: argparse.Namespace) -> int:
    version = registry.get_version(options.version)
    print(_FORMATS[options.format](version, lineage.of_version(version)))
    return 0


def _rebuild(options: argparse.Namespace) -> int:
    version, repository = registry.get_version(options.version), Path.cwd()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="emuedit-rebuild-")) / f"version-{version.number}"
    with rebuild.removed_worktree(repository, folder, keep=options.folder is not None):
        outputs = rebuild.rebuild(version, repository, folder)
        for output in outputs:
            difference = f"differs: want {output.md5[:12]}, got {output.rebuilt_md5[:12] or 'nothing'}"
            print(f"{output.path:24} {'identical' if output.is_identical else difference}")
    n_same = sum(output.is_identical for output in outputs)
    print(f"version {version.number}: {n_same} of {len(outputs)} outputs are identical")
    return 0 if n_same == len(outputs) else 1


def _date(time_ms: int) -> str:
    return dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M")
