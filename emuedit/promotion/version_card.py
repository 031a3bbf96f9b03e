"""The card of a registered version: its scores, the gate's decision, parent, data, licences and intended use.

Everything is read from the tags of the version, so the card can be rendered again after each decision. It is the artifact
`cards/model.md` of the run of the version; the first lines are also the description of the version.
"""

import json
import math
from collections.abc import Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any

from emuedit.promotion.gate import OVERALL
from emuedit.tasks import ALL_TASKS, find_task
from emuedit.tracking import registry, runs
from emuedit.tracking.registry import ModelVersion
from emuedit.tracking.service_errors import one_line

FOLDER = "cards"
"""Folder of the run's artifacts with the cards of the model and of its data."""
CARD = f"{FOLDER}/model.md"
SCORES_TAG, SOURCES_TAG, N_EDITS_TAG = "card.scores", "card.sources", "card.n_edits"
"""Tags of a version, as JSON: system -> task -> edit success, part of the world -> [name, licence], and the number of edits per
task, or task -> number of edits."""
SUCCESS_TAG, SUCCESS_CONDITIONS_TAG = "edit_success", "edit_success.items"
"""Tags of a version: its edit success, and the key of the conditions under which the flow `backfill` measured it, if it did."""
_NOT_STATED = "not stated"
_BASELINE = "identity"
_DATA = "dvc.data/"

_TEXT = """\
# {uri}

{summary}

| | |
|---|---|
| run | `{run_id}` |
| commit | {commit} |
| parent | {parent} |
| reason | {why} |
| gate | {gate} |

## Scores

Edit success in its own evaluation: the share of edits that the benchmark's judge accepts. `overall` is the mean over the trained
tasks.{precision}

{scores}

## Data

The data card of the kept pairs is `{folder}/dataset/card.md` of the run. Hashes of the data that the version was made from:

{data}

`emuedit lineage {number}` shows all inputs.

## Models and licences

| part | name | licence |
|---|---|---|
{sources}

The licences of the base model and of the data apply to this version too.

## Intended use

To edit single images by short instructions of the tasks above: with `emuedit edit`, in Python, or on a server. Other tasks,
languages and image sizes were not measured. It has no safety checker: check images before you show them to others, and do not
present edited images as unedited ones. `artifacts/editor/README.md` of the version describes the network and its limits.
"""


def make_tags(
    table: Mapping[str, Mapping[str, float | None]],
    system: str,
    params: Mapping[str, Any],
    section: str = "evaluation",
    measured: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, str]:
    """The tags that the card needs. `table`: system -> task -> edit success. `params`: content of `params.yaml`.

    section: that of the evaluation, whose `n_edits` is the number of edits per task. measured: task -> number of edits, used if
    `n_edits` is null.
    """
    scores = {name: dict(table[name]) for name in (system, _BASELINE) if name in table}
    licences = (params.get("dataset") or {}).get("licences") or {}
    world = {key: value for key, value in (params.get("world") or {}).items() if key != "name" and value}
    sources = {part: [str(name), licences.get(part, _NOT_STATED)] for part, name in world.items()}
    n_edits = (params.get(section) or {}).get("n_edits") or dict(measured)
    tags = {SCORES_TAG: json.dumps(scores), SOURCES_TAG: json.dumps(sources)}
    return tags | ({N_EDITS_TAG: json.dumps(n_edits)} if n_edits else {})


def render(version: ModelVersion) -> str:
    """The card, as Markdown."""
    tags = version.tags
    scores = _read(tags, SCORES_TAG)
    n_edits = _read_n_edits(tags, {task for row in scores.values() for task in row if find_task(task)})
    data = {key.removeprefix("dvc."): value for key, value in tags.items() if key.startswith(_DATA)}
    return _TEXT.format(
        uri=version.uri,
        summary=summarise(version),
        number=version.number,
        run_id=version.run_id,
        commit=f"`{tags['git.commit']}`, {describe_changes(tags)}" if "git.commit" in tags else "none",
        parent=f"`{tags['parent']}`" if tags.get("parent") else "none: trained from the base model",
        why=_cell(tags.get(registry.RUN_REASON_TAG, "") or _NOT_STATED),
        gate=_cell(_gate(tags)),
        precision=_describe_precision(n_edits),
        scores=_format_scores(scores, n_edits),
        folder=FOLDER,
        data="\n".join(f"- `{path}`: `{value}`" for path, value in sorted(data.items())) or "- none was recorded",
        sources="\n".join(f"| {part} | `{name}` | {licence} |" for part, (name, licence) in _read(tags, SOURCES_TAG).items())
        or f"| - | - | {_NOT_STATED} |",
    )


def summarise(version: ModelVersion) -> str:
    """One line: overall success, the gate's decision and the commit."""
    tags = version.tags
    source = "measured by the last backfill" if SUCCESS_CONDITIONS_TAG in tags else "in its own evaluation"
    success = f"Edit success {tags[SUCCESS_TAG]} {source}. " if SUCCESS_TAG in tags else ""
    return f"{success}Gate: {_gate(tags)}. Commit {tags.get('git.commit', 'none')[:8]}, card: `{CARD}` of its run."


def describe_changes(tags: Mapping[str, str]) -> str:
    """The state of the working tree at the start of the retrain, from the tags of a version."""
    if tags.get("git.dirty") != "true":
        return "clean"
    changes = tags.get("git.changes", "")
    return "with uncommitted changes" + (f": {changes}" if changes else "")


def update(number: int) -> None:
    """Write the card of a version to its run, and its first line to the description of the version.

    An error is printed: the version and the decision about it are complete without the card.
    """
    try:
        version = registry.get_version(number)
        registry.set_description(number, summarise(version))
        if version.run_id and runs.is_active(version.run_id):
            runs.log_text(version.run_id, CARD, render(version))
    except Exception as error:  # of MLflow, its database or its artifact store
        print(f"== the card of version {number} was not written: {one_line(error)}; the next decision writes it", flush=True)


def _gate(tags: Mapping[str, str]) -> str:
    state, reason = tags.get("gate.state", ""), tags.get("gate.reason", "")
    return f"{state}: {reason}" if state and reason else state or "no decision"


def _describe_precision(n_edits: Mapping[str, int]) -> str:
    """The number of edits of each task, as a sentence; empty if it is not known."""
    if not n_edits:
        return ""
    numbers = ", ".join(f"{n} of {task}" for task, n in sorted(n_edits.items()))
    edits = f"Edits: {numbers}" if len(set(n_edits.values())) > 1 else f"{next(iter(n_edits.values()))} edits per task"
    return f" {edits}; ± is the standard error (Agresti-Coull)."


def _format_scores(scores: Mapping[str, Mapping[str, float | None]], n_edits: Mapping[str, int]) -> str:
    """A table of success and its standard error; without the error for slices, whose number of edits is not recorded."""
    if not scores:
        return "None were recorded."
    systems = list(scores)
    tasks = sorted({task for values in scores.values() for task in values} - {OVERALL})
    lines = [f"| task | {' | '.join(systems)} |", "|---|" + "---:|" * len(systems)]
    for task in (OVERALL, *tasks):
        cells = [_format_score(scores[system], task, n_edits) for system in systems]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _format_score(row: Mapping[str, float | None], task: str, n_edits: Mapping[str, int]) -> str:
    value = row.get(task)
    if value is None:
        return "-"
    names = [name for name in row if name in ALL_TASKS] if task == OVERALL else [task]
    shares = [(share, n_edits[name]) for name in names if name in n_edits and (share := row.get(name)) is not None]
    return f"{value:.3f}" + (f" ± {_standard_error(shares):.3f}" if shares else "")


def _standard_error(shares: Sequence[tuple[float, int]]) -> float:
    """Standard error of the unweighted mean of shares, each of n independent edits: sqrt(sum of p (1 - p) / (n + 4)) / tasks.

    p is a share with two more successes and two more failures, else a share of 0 or 1 had no error (Agresti & Coull 1998,
    Approximate is better than "exact" for interval estimation of binomial proportions).
    """
    adjusted = [((share * n + 2) / (n + 4), n) for share, n in shares]
    return math.sqrt(sum(p * (1 - p) / (n + 4) for p, n in adjusted)) / len(shares)


def _read_n_edits(tags: Mapping[str, str], tasks: Set[str]) -> dict[str, int]:
    """Task -> number of edits. A tag with one number holds for all `tasks`."""
    value = tags.get(N_EDITS_TAG, "")
    return dict.fromkeys(tasks, int(value)) if value.isdigit() and int(value) else _read(tags, N_EDITS_TAG)


def _read(tags: Mapping[str, str], key: str) -> dict[str, Any]:
    """The value of a tag with JSON; empty if it is missing, or was cut at the limit of MLflow."""
    try:
        return dict(json.loads(tags.get(key, "{}")))
    except (ValueError, TypeError):
        return {}


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
