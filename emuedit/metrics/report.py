"""The report of an evaluation: tables of means, a CSV file, and a contact sheet."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
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
from emuedit.predictor.task_predictor import NO_EDIT
from emuedit.tasks import HELD_OUT, get_task

Table = dict[str, dict[str, float | None]]
"""System -> task, or `overall` -> value; None if nothing was measured."""
REFUSED = "refused"
_DIRECTION, _IMAGE_SIMILARITY = "clip_dir", "clip_im"
_ROUNDING = 1e-5
"""Of a cosine of float32 vectors. CLIPim differs from 1 by less than 1e-8 where `similarity.LEAST_CHANGE` holds."""
_EQUAL_CAPTIONS, _UNCHANGED_IMAGE = "equal_captions", "unchanged_image"


def summarise(
    records: Sequence[EvalRecord], tasks: Sequence[str], slices: Mapping[str, WordList] = MappingProxyType({})
) -> dict[str, Table]:
    """One table for each of `edit_success`, `router`, `refused` and the five metrics.

    `router` is the share of correctly predicted tasks, for the wordings of the benchmark: in the toy world training templates
    with new scenes (bench/router.py measures others). `refused` is the share of instructions that the task predictor refuses,
    which are neither successes nor correctly predicted. Values are means over edits; `overall` is the unweighted mean over the
    trained tasks. The mean of no values is None. Undefined values are excluded and counted in the table `undefined_<metric>`.
    CLIPdir has two of them: `undefined_clip_dir_equal_captions`, which depends on the benchmark alone, and
    `undefined_clip_dir_unchanged_image`, outputs with the CLIP embedding of their input. The mean leaves both out, so a system
    that changes fewer images does not get a lower CLIPdir; compare it together with this count.
    slices: name -> words. `edit_success_<name>` is the success in edits with one of the words in their instruction or captions,
    `edit_success_without_<name>` that in all others.
    """
    tables = _summarise(records, tasks, ("edit_success", "router", REFUSED, *METRICS))
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
        values: dict[tuple[str, str], list[float]] = defaultdict(list)  # (system, task) -> defined values
        undefined: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)  # table of counts -> (system, task) -> number
        for record in records:
            if record.task not in tasks:
                continue
            value = _value(metric, record)
            if value is None:
                undefined[_undefined_name(metric, record)][record.system, record.task] += 1
            else:
                values[record.system, record.task].append(value)
        tables[metric] = {}
        for system in systems:
            means = {task: _mean(values[system, task]) for task in tasks}
            tables[metric][system] = {"overall": _mean([mean for task in trained if (mean := means[task]) is not None]), **means}
        for name, numbers in sorted(undefined.items()):
            tables[name] = {}
            for system in systems:
                row = {task: float(numbers[system, task]) for task in tasks}
                tables[name][system] = {"overall": sum(row[task] for task in trained), **row}
    return tables


def _undefined_name(metric: str, record: EvalRecord) -> str:
    """The table that counts an undefined value of this record.

    CLIPdir is undefined if a change has no direction: that of the captions, or that of the image, whose CLIPim is then 1. If both
    have none, it counts as equal captions if the words are equal. Captions with other words may be equal in what CLIP reads.
    """
    if metric != _DIRECTION:
        return f"undefined_{metric}"
    before, after = (caption.casefold().split() for caption in (record.source_caption, record.target_caption))  # as CLIP reads
    similarity = record.scores[_IMAGE_SIMILARITY]
    is_unchanged = similarity is None or similarity > 1 - _ROUNDING
    return f"undefined_{metric}_{_UNCHANGED_IMAGE if is_unchanged and before != after else _EQUAL_CAPTIONS}"


def write_csv(path: Path, tables: dict[str, Table]) -> None:
    """Write the tables as one row per system and task, for `dvc plots` and spreadsheets; counts of undefined values come last."""
    names = sorted(tables, key=lambda name: name.startswith("undefined_"))
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
    if metric == REFUSED:
        return float(record.given_task == NO_EDIT)
    return float(record.given_task == record.task) if metric == "router" else record.scores[metric]


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None
