"""Check that a store meets the requirements of DVC and this project, with one independent probe per property.

Probes write only below `scratch/` in the prefix, and clean up; the lifecycle rule removes leftovers of a killed check.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from emuedit.operations.storage.bucket import Bucket
from emuedit.operations.storage.remote_error import CHECK, RemoteError

PASS: Literal["pass"] = "pass"  # noqa: S105 - not a password
WARN: Literal["warn"] = "warn"
FAIL: Literal["fail"] = "fail"
NOT_RUN: Literal["not run"] = "not run"
Status = Literal["pass", "warn", "fail", "not run"]


@dataclass(frozen=True)
class ProbeOutcome:
    """Result of a probe: `detail`: the observation; `advice`: what to do, '' if nothing."""

    status: Status
    detail: str
    advice: str = ""


@dataclass(frozen=True)
class NamedOutcome:
    """A line of the table."""

    name: str
    outcome: ProbeOutcome


Probe = Callable[[Bucket, str], ProbeOutcome]
"""Takes the bucket and a folder below its prefix for its objects."""


def run_probes(
    bucket: Bucket, folder: str, essential: Sequence[tuple[str, Probe]], others: Sequence[tuple[str, Probe]]
) -> list[NamedOutcome]:
    """All outcomes in order. After an essential probe fails, later ones are 'not run', because they would fail too."""
    outcomes: list[NamedOutcome] = []
    blocked = ""
    for name, probe in [*essential, *others]:
        if blocked:
            outcomes.append(NamedOutcome(name, ProbeOutcome(NOT_RUN, f"needs {blocked}")))
            continue
        try:
            outcome = probe(bucket, folder)
        except RemoteError as error:
            text = str(error).removeprefix(f"{bucket.location}: ").removesuffix(f". {CHECK}")
            outcome = ProbeOutcome(FAIL, error.code, text)
        outcomes.append(NamedOutcome(name, outcome))
        if outcome.status == FAIL and (name, probe) in essential:
            blocked = name
    return outcomes


def exit_status(outcomes: Sequence[NamedOutcome]) -> int:
    """0 if no probe failed (warnings are allowed), else 2."""
    return 2 if any(line.outcome.status == FAIL for line in outcomes) else 0


def format_table(outcomes: Sequence[NamedOutcome]) -> str:
    """One line per probe, with its advice indented below it."""
    width = max(len(line.name) for line in outcomes)
    lines = []
    for line in outcomes:
        lines.append(f"{line.outcome.status:8} {line.name:{width}}  {line.outcome.detail}".rstrip())
        if line.outcome.advice:
            lines.append(f"{'':8} {'':{width}}  -> {line.outcome.advice}")
    counts = {status: sum(line.outcome.status == status for line in outcomes) for status in (PASS, WARN, FAIL, NOT_RUN)}
    lines.append(", ".join(f"{count} {status}" for status, count in counts.items() if count))
    return "\n".join(lines)


def format_json(remote: str, outcomes: Sequence[NamedOutcome]) -> str:
    """The same as JSON: {"remote": URL, "ok": bool, "checks": [{"name", "status", "detail", "advice"}]}."""
    checks = [{"name": line.name, **asdict(line.outcome)} for line in outcomes]
    return json.dumps({"remote": remote, "ok": exit_status(outcomes) == 0, "checks": checks}, indent=2)
