"""The yield of each task (captions -> instructions -> candidates -> kept pairs), reasons for losses, and the cost of a kept pair.

All counts come from the `summary.json` of the stages. Durations are arguments, because summaries contain none. A stage processes
all tasks at once, so its duration is divided among them in proportion to captions (captions, instructions) or candidates (other
stages). This division is our own choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from emuedit import config
from emuedit.data.dependencies import SUMMARY_FILE
from emuedit.data.publish import read_summary

SECTION = "ledger"
ALL = "all"
"""Row of all tasks together."""
ARTIFACT = "yield/ledger.json"
"""Artifact of a run with its ledger."""
METRICS = "yield"
FOLDERS = {"captions": "data/captions", "instructions": "data/instructions", "pairs": "data/pairs", "dataset": "data/dataset"}
"""Stage -> its output, in the order of work."""
KEPT_PAIRS = FOLDERS["dataset"]
"""The output without which there is no ledger."""
_BY_CAPTIONS, _BY_CANDIDATES = ("captions", "instructions"), ("pairs", "router", "dataset")  # how to divide their seconds
_NO_REASONS = ("pairs", "kept", "kept_instructions", "reassigned")  # counts of the stage dataset
Counts = Mapping[str, int]


class LedgerSettings(config.Params):
    """Cost of the machines: the section `ledger` of `params.yaml`."""

    price_per_hour: float = Field(0.0, ge=0)
    """Price of an hour of the machine that generates the data, in `currency`; 0: no costs are shown."""
    currency: str = Field("USD", min_length=1)
    """Currency of prices."""


@dataclass(frozen=True)
class YieldRow:
    """One task, or all tasks."""

    task: str
    captions: int
    """Captions for which the LLM was asked for an instruction of the task."""
    instructions: int
    candidates: int
    """Generated pairs, several per instruction, and imported pairs."""
    kept: int
    reasons: dict[str, int] = field(default_factory=dict)
    """`<stage>.<reason>` -> number lost, the most frequent first. A pair may have several reasons."""
    seconds: float | None = None
    """The task's part of the seconds of all stages; None if the seconds of a stage are unknown."""
    cost_per_kept: float | None = None
    """Price of a kept pair; None without kept pairs, seconds or a price."""

    def figures(self) -> dict[str, float]:
        """The known numbers, for metrics."""
        values = {name: value for name, value in asdict(self).items() if name not in ("task", "reasons")}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Ledger:
    """The yields of one run."""

    rows: tuple[YieldRow, ...]
    """By task, then the row ALL."""
    seconds: dict[str, float]
    """Stage -> its seconds, in this run or in the run that produced its output."""
    currency: str = ""

    def metrics(self) -> dict[str, Any]:
        """`yield.<task>.<step>` as nested mappings."""
        return {METRICS: {row.task: row.figures() for row in self.rows}}

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Ledger:
        """The inverse of `to_dict`."""
        return cls(tuple(YieldRow(**row) for row in values["rows"]), dict(values["seconds"]), str(values["currency"]))


def read(root: Path, seconds: Mapping[str, float]) -> Ledger | None:
    """The ledger of a workspace; None if no pairs were filtered. `seconds`: stage -> its seconds, if known."""
    files = {stage: root / folder for stage, folder in FOLDERS.items() if (root / folder / SUMMARY_FILE).exists()}
    if "dataset" not in files:
        return None
    summaries = {stage: read_summary(folder) for stage, folder in files.items()}
    counts: dict[str, Counts] = {stage: summary.counts for stage, summary in summaries.items()}
    tasks = summaries["instructions"].params.get("tasks", ()) if "instructions" in summaries else ()
    settings = config.load_optional(LedgerSettings, SECTION, root / config.PARAMS_FILE)
    return make(counts, tasks, seconds, settings)


def make(counts: Mapping[str, Counts], tasks: Sequence[str], seconds: Mapping[str, float], settings: LedgerSettings) -> Ledger:
    """The core function. `counts`: stage -> counts of its summary; `tasks`: the tasks of the stage instructions."""
    instructions, dataset = counts.get("instructions", {}), counts["dataset"]
    filtered = [key.removesuffix(".pairs") for key in dataset if key.endswith(".pairs")]
    rows = []
    for task in sorted({*tasks, *filtered}):
        dropped = dict(_lost_instructions(instructions, task, tasks))
        kept_instructions = instructions.get(f"kept_{task}", 0)
        reasons = {f"instructions.{reason}": n for reason, n in dropped.items()}
        reasons |= {f"dataset.{reason}": n for reason, n in _rejected_pairs(dataset, task)}
        candidates, kept = (dataset.get(f"{task}.{name}", 0) for name in ("pairs", "kept"))
        rows.append(
            YieldRow(task, kept_instructions + sum(dropped.values()), kept_instructions, candidates, kept, _sorted(reasons))
        )
    total = _total(rows, counts.get("pairs", {}))
    stage_seconds = {stage: seconds[stage] for stage in (*_BY_CAPTIONS, *_BY_CANDIDATES) if stage in seconds}
    needed = [stage for stage in FOLDERS if stage in counts]
    is_known = all(stage in stage_seconds for stage in needed)
    price = settings.price_per_hour / 3600
    return Ledger(
        tuple(_priced(row, total, stage_seconds if is_known else None, price) for row in (*rows, total)),
        stage_seconds,
        settings.currency,
    )


def _lost_instructions(counts: Counts, task: str, tasks: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Reasons of dropped answers. `dropped_add_detect_refused` belongs to the task add_detect, not to add."""
    longer = [f"dropped_{other}_" for other in tasks if other.startswith(f"{task}_")]
    for key, count in counts.items():
        if key.startswith(f"dropped_{task}_") and not any(map(key.startswith, longer)):
            yield key.removeprefix(f"dropped_{task}_"), count


def _rejected_pairs(counts: Counts, task: str) -> Iterator[tuple[str, int]]:
    for key, count in counts.items():
        if key.startswith(f"{task}.") and key.removeprefix(f"{task}.") not in _NO_REASONS:
            yield key.removeprefix(f"{task}."), count


def _total(rows: Sequence[YieldRow], pairs: Counts) -> YieldRow:
    """The row of all tasks. The stage pairs counts its reasons only over all tasks."""
    reasons = Counter({f"pairs.{key.removeprefix('dropped_')}": n for key, n in pairs.items() if key.startswith("dropped_")})
    for row in rows:
        reasons.update(row.reasons)
    captions, instructions, candidates, kept = (
        sum(getattr(row, name) for row in rows) for name in ("captions", "instructions", "candidates", "kept")
    )
    return YieldRow(ALL, captions, instructions, candidates, kept, _sorted(reasons))


def _priced(row: YieldRow, total: YieldRow, seconds: Mapping[str, float] | None, price_per_s: float) -> YieldRow:
    """The row with its part of the seconds and the cost of a kept pair."""
    if seconds is None:
        return row
    parts = ((_BY_CAPTIONS, row.captions, total.captions), (_BY_CANDIDATES, row.candidates, total.candidates))
    row_seconds = sum(seconds.get(stage, 0.0) * (n / n_all if n_all else 0.0) for stages, n, n_all in parts for stage in stages)
    cost = row_seconds * price_per_s / row.kept if row.kept and price_per_s else None
    return replace(row, seconds=round(row_seconds, 3), cost_per_kept=cost)


def _sorted(reasons: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
