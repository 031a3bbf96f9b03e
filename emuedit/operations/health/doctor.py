"""`emuedit doctor`: check for known problems, and suggest fixes."""

import json
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from emuedit.operations.health import (
    gpu_checks,
    installation_checks,
    machine_checks,
    registry_checks,
    server_checks,
    workspace_checks,
)
from emuedit.operations.health.health_finding import Finding
from emuedit.progress import waiting

CheckFunction = Callable[[], Iterable[Finding]]
CHECKS: tuple[CheckFunction, ...] = (
    *installation_checks.CHECKS,
    *machine_checks.CHECKS,
    *gpu_checks.CHECKS,
    *workspace_checks.CHECKS,
    *server_checks.CHECKS,
    *registry_checks.CHECKS,
)
_MARKS = {"pass": "ok  ", "warn": "WARN", "fail": "FAIL"}


def examine(as_json: bool, checks: Sequence[CheckFunction] = CHECKS) -> int:
    """Print the findings of all checks, in their order. Exit status: 1 if a check fails, else 0; warnings do not count."""
    with waiting("checking"), ThreadPoolExecutor(max_workers=8) as pool:
        findings = [finding for group in pool.map(_run, checks) for finding in group]
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        _print(findings)
    return 1 if any(finding.status == "fail" for finding in findings) else 0


def _run(check: CheckFunction) -> list[Finding]:
    """The findings of a check. If it raises an error, that is a warning, so that the others are still shown."""
    try:
        return list(check())
    except Exception as error:  # of any kind, since machines differ
        place = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"this check raised an error: {type(error).__name__}: {error} ({place.name}, line {place.lineno})"
        return [Finding(check.__name__.removeprefix("check_").replace("_", " "), "warn", detail, "report this line as a bug")]


def _print(findings: Sequence[Finding]) -> None:
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{_MARKS[finding.status]}  {finding.name.ljust(width)}  {finding.detail}")
        if finding.status != "pass":
            print(f"      {' ' * width}  -> {finding.fix}")
    n_by_status = {status: sum(finding.status == status for finding in findings) for status in _MARKS}
    text = f"\n{n_by_status['pass']} ok, {n_by_status['warn']} warnings, {n_by_status['fail']} failures"
    print(text, file=sys.stdout)
