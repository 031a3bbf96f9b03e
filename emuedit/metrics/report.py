"""The report of an evaluation: tables of means, a CSV file, and a contact sheet."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image

from emuedit.data import contact_sheet
from emuedit.data.png import decode_png
from emuedit.data.records import EvalRecord
from emuedit.data.word_list import WordList
from emuedit.metrics.edit_scores import METRICS
from emuedit.tasks import HELD_OUT, get_task

Table = dict[str, dict[str, float | None]]
"""System -> task, or `overall` -> value; None if nothing was measured."""


def summarise(
    records: Sequence[EvalRecord], tasks: Sequence[str], slices: Mapping[str, WordList] = MappingProxyType({})
) -> dict[str, Table]:
    """One table for each of `edit_success`, `router` (share of correctly predicted tasks) and the five metrics.

    Values are means over edits; `overall` is the unweighted mean over the trained tasks. Undefined values are excluded and
    counted in the table `undefined_<metric>`. The mean of no values is None.
    slices: name -> words. `edit_success_<name>` is the success in edits with one of the words in their instruction or captions,
    `edit_success_without_<name>` that in all others.
    """
    tables = _summarise(records, tasks, ("edit_success", "router", *METRICS))
    for name, words in slices.items():
        matches = [has_word(record, words) for record in records]
        for label, chosen in ((name, True), (f"without_{name}", False)):
            part = [record for record, match in zip(records, matches, strict=True) if match == chosen]
            tables[f"edit_success_{label}"] = _summarise(part, tasks, ("edit_success",))["edit_success"]
    return tables


def has_word(record: EvalRecord, words: WordList) -> bool:
    """Whether the instruction or a caption of an edit has one of the words."""
    return words.first_match([record.instruction, record.source_caption, record.target_caption]) is not None


def _summarise(records: Sequence[EvalRecord], tasks: Sequence[str], metrics: Sequence[str]) -> dict[str, Table]:
    trained = [name for name in tasks if get_task(name) not in HELD_OUT]
    systems = list(dict.fromkeys(record.system for record in records))
    tables: dict[str, Table] = {}
    for metric in metrics:
        tables[metric], undefined = {}, {}
        for system in systems:
            means: dict[str, float | None] = {}
            n_undefined: dict[str, float | None] = {}
            for name in tasks:
                values = [_value(metric, record) for record in records if (record.system, record.task) == (system, name)]
                defined = [value for value in values if value is not None]
                means[name] = _mean(defined)
                n_undefined[name] = float(len(values) - len(defined))
            tables[metric][system] = {"overall": _mean([v for n in trained if (v := means[n]) is not None]), **means}
            undefined[system] = {"overall": sum(n_undefined[name] or 0 for name in trained), **n_undefined}
        if any(count for row in undefined.values() for count in row.values()):
            tables[f"undefined_{metric}"] = undefined
    return tables


def write_csv(path: Path, tables: dict[str, Table]) -> None:
    """Write the tables as one row per system and task, for `dvc plots` and spreadsheets."""
    names = [name for name in tables if not name.startswith("undefined_")]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["system", "task", *names])
        for system, row in tables["edit_success"].items():
            for task in row:
                # a slice without edits of a system has no row for it
                writer.writerow([system, task, *(tables[name].get(system, {}).get(task) for name in names)])


def draw_contact_sheet(
    records: Sequence[EvalRecord], system: str, tasks: Sequence[str], columns: int, success: Table
) -> Image.Image:
    """The first `columns` edits of each task: input, output and, if known, the reference result.

    An output has a green frame if the judge accepts it, else a red one.
    """
    strips = []
    for name in tasks:
        of_task = [record for record in records if (record.system, record.task) == (system, name)]
        examples = of_task[:columns]
        rows = [
            ("input", np.stack([decode_png(record.source) for record in examples])),
            ("output", np.stack([decode_png(record.output) for record in examples])),
        ]
        exact = [record.exact for record in examples if record.exact is not None]
        if len(exact) == len(examples):
            rows.append(("exact", np.stack([decode_png(png) for png in exact])))
        title = f"{name}: {success[system][name]:.0%} of {len(of_task)} succeed"
        marks = ("output", [record.success for record in examples])
        instructions = [record.instruction for record in examples]
        strips.append(contact_sheet.picture_grid(rows, instructions, 4, title, marks))
    return contact_sheet.tile_sheets(strips, columns=2)


def _value(metric: str, record: EvalRecord) -> float | None:
    if metric == "edit_success":
        return float(record.success)
    return float(record.given_task == record.task) if metric == "router" else record.scores[metric]


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None
