"""The report of a validation: `report.md` and `report.json`; `validation_chart` draws `report.png`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emuedit.data_checks import distribution_drift, validation_chart
from emuedit.data_checks.check_bounds import CHECKS, CheckResult
from emuedit.data_checks.pair_profile import Embeddings, PairProfile
from emuedit.data_checks.reference_profile import Reference

MARKDOWN, JSON_FILE, PICTURE = "report.md", "report.json", "report.png"
FILES = (MARKDOWN, JSON_FILE, PICTURE)
_LISTED_WORDS = 200
_TEMPLATE = """\
# Validation of the kept pairs

{verdict}

{n_pairs} kept pairs of {n_tasks} tasks; the images of {sample} of them were checked. {compared}

![Tasks, lengths and drift](report.png)

| check | verdict | value | warns | fails | measured |
|---|---|---:|---:|---:|---|
{checks}

{breaches}## Tasks

| task | candidates | kept | share of kept pairs | in the reference |
|---|---:|---:|---:|---:|
{tasks}

## Lengths

| | pairs or captions | words, 5% to 95% | longest |
|---|---:|---:|---:|
{lengths}
{words}{examples}"""


@dataclass(frozen=True)
class ReportedData:
    """Data of a report."""

    profile: PairProfile
    embeddings: Embeddings
    reference: Reference
    counts: Mapping[str, int]
    """Counts of the stage `dataset`: `<task>.pairs` and `<task>.kept`."""

    def task_rows(self) -> list[tuple[str, int, int]]:
        """(task, kept pairs, rejected pairs), most frequent task first. Kept pairs count for their reassigned task."""
        candidates = {key.removesuffix(".pairs"): n for key, n in self.counts.items() if key.endswith(".pairs")}
        rejected = {task: n - self.counts.get(f"{task}.kept", 0) for task, n in candidates.items()}
        former = self.reference.profile
        tasks = {*self.profile.tasks, *candidates, *(former.tasks if former else ())}
        rows = [(task, self.profile.tasks.get(task, 0), rejected.get(task, 0)) for task in tasks]
        return sorted(rows, key=lambda row: (-row[1], row[0]))

    def new_words(self) -> dict[str, int]:
        """Word that is not in the reference -> count; empty without a reference."""
        former = self.reference.profile
        return distribution_drift.new_words(self.profile.words, former.words) if former else {}


def write(folder: Path, data: ReportedData, results: Sequence[CheckResult]) -> None:
    """Write the three files of a report."""
    (folder / MARKDOWN).write_text(render(data, results), encoding="utf-8")
    report = {
        "verdict": overall(results),
        "reference": data.reference.name,
        "checks": [
            {"check": r.name, "verdict": r.verdict, "figure": r.value, "bound": r.bound.model_dump(), "note": r.note,
             "measures": CHECKS[r.name].figure, "advice": CHECKS[r.name].advice}
            for r in results
        ],
        "tasks": [dict(zip(("task", "kept", "rejected"), row, strict=True)) for row in data.task_rows()],
        "new_words": data.new_words(),
        "examples": data.profile.examples,
    }  # fmt: skip
    (folder / JSON_FILE).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    profile, former = data.profile, data.reference.profile
    lengths = {"Instructions": profile.instruction_lengths, "Captions": profile.caption_lengths}
    former_lengths = [former.instruction_lengths, former.caption_lengths] if former else [None, None]
    histograms = [(name, counts, other) for (name, counts), other in zip(lengths.items(), former_lengths, strict=True)]
    drift = [result for result in results if result.name in ("new_words", "task_drift", "picture_drift")]
    validation_chart.draw(data.task_rows(), histograms, drift, data.reference).save(folder / PICTURE, optimize=True)


def overall(results: Sequence[CheckResult]) -> str:
    """`fail`, `accepted`, `warn` or `pass`: the worst verdict."""
    verdicts = {result.verdict for result in results}
    return next(verdict for verdict in ("fail", "accepted", "warn", "pass") if verdict in verdicts)


def describe(result: CheckResult) -> str:
    """A result in the form "want ..., got ..."."""
    sign = "at least" if CHECKS[result.name].edge == "min" else "at most"
    note = f" ({result.note})" if result.note else ""
    if result.value is None:
        return f"not measured{note}"
    return f"want {sign} {format_number(result.bound.fail)} {CHECKS[result.name].figure}, got {format_number(result.value)}{note}"


def format_number(value: float | None) -> str:
    """Up to four significant digits; a dash for None."""
    return "-" if value is None else f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"


def render(data: ReportedData, results: Sequence[CheckResult]) -> str:
    """The report in Markdown."""
    profile, reference = data.profile, data.reference
    former = reference.profile
    breaches = [result for result in results if result.verdict in ("fail", "accepted")]
    n_by_verdict = {verdict: sum(r.verdict == verdict for r in results) for verdict in ("pass", "warn", "accepted", "fail")}
    new_words = data.new_words()
    listed = ", ".join(f"{word} ({count})" for word, count in list(new_words.items())[:_LISTED_WORDS])
    return _TEMPLATE.format(
        verdict=f"**{overall(results)}**: " + ", ".join(f"{n} {verdict}" for verdict, n in n_by_verdict.items() if n),
        n_pairs=profile.n_pairs,
        n_tasks=len(profile.tasks),
        sample=profile.sample,
        compared=f"Compared with {reference.name}." if former else f"Not compared ({reference.note}).",
        checks="\n".join(map(_check_row, results)),
        breaches="## What to do\n\n" + "\n".join(map(_breach_line, breaches)) + "\n\n" if breaches else "",
        tasks="\n".join(_task_row(row, profile, former) for row in data.task_rows()),
        lengths=f"{_length_row('instructions', profile.instruction_lengths)}\n{_length_row('captions', profile.caption_lengths)}",
        words=f"\n## New words\n\n{len(new_words)} words are not in the reference: {listed}\n" if new_words else "",
        examples=_examples(profile.examples),
    )


def _check_row(result: CheckResult) -> str:
    sign = {"min": "<", "max": ">"}[CHECKS[result.name].edge]
    warn, fail = (
        f"{sign} {format_number(bound)}" if bound is not None else "-" for bound in (result.bound.warn, result.bound.fail)
    )
    note = f": {result.note}" if result.note else ""
    mark = result.verdict if result.verdict == "pass" else f"**{result.verdict}**"
    return f"| {result.name} | {mark} | {format_number(result.value)} | {warn} | {fail} | {CHECKS[result.name].figure}{note} |"


def _breach_line(result: CheckResult) -> str:
    accepted = "accepted in params.yaml; " if result.is_accepted else ""
    advice = CHECKS[result.name].advice
    return f"- **{result.name}**: {accepted}{describe(result)}. {advice[0].upper()}{advice[1:]}."


def _task_row(row: tuple[str, int, int], profile: PairProfile, former: PairProfile | None) -> str:
    task, kept, rejected = row
    before = f"{former.tasks.get(task, 0) / max(1, former.n_pairs):.1%}" if former else "-"
    return f"| {task} | {kept + rejected} | {kept} | {kept / max(1, profile.n_pairs):.1%} | {before} |"


def _length_row(name: str, lengths: Mapping[str, int]) -> str:
    words = sorted((int(length), count) for length, count in lengths.items())
    total = sum(count for _, count in words)
    if not total:
        return f"| {name} | 0 | - | - |"
    low, high = (_quantile(words, share * total) for share in (0.05, 0.95))
    return f"| {name} | {total} | {low} to {high} | {words[-1][0]} |"


def _quantile(lengths: Sequence[tuple[int, int]], rank: float) -> int:
    seen = 0
    for length, count in lengths:
        seen += count
        if seen >= rank:
            return length
    return lengths[-1][0]


def _examples(examples: Mapping[str, Sequence[str]]) -> str:
    parts = [f"\n### {check}\n\n" + "\n".join(f"- `{example}`" for example in listed) for check, listed in examples.items()]
    return "\n## Examples\n" + "\n".join(parts) + "\n" if parts else ""
