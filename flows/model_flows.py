"""Flows about registered versions: `promote`, `rollback`, `evaluate` and `backfill`. Deployments: `prefect.yaml`.

While they measure, they hold the GPU slot if the gate stage of `dvc.yaml` has `meta: {gpu: true}`.
"""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.deployments import run_deployment

from emuedit.data.name_list import first_names
from emuedit.promotion import promote as promotion
from emuedit.promotion import version_card
from emuedit.tracking import alias_moves, registry
from flows import dvc_graph, gate_stage
from flows.mail_notification import mail_on_failure
from flows.run_history import first_line


class ChampionRegressedError(RuntimeError):
    """Raised if the champion's edit success dropped and no stage is out of date, so a retrain would produce the same model."""


class BackfillError(RuntimeError):
    """Raised at the end if the files of some versions are missing, changed or unreadable; the other versions are tagged."""


@flow(name="promote", validate_parameters=True, on_failure=[mail_on_failure], on_crashed=[mail_on_failure])
def promote(version: int, force_reason: str = "") -> dict[str, Any]:
    """Compare a `version` with the champion, and promote it if the promotion gate accepts it; `force_reason` overrules it."""
    with gate_stage.measuring_slot(Path.cwd()):
        outcome = promotion.promote(registry.get_version(version), Path.cwd(), force_reason=force_reason)
    decision = outcome.decision
    text = f"Version {version}: {decision.reason}\n\n```\n{decision.table()}\n```"
    create_markdown_artifact(text, key="promotion", description="Decision of the gate")
    print(f"== version {version}: {decision.reason}", flush=True)
    return {"promoted": decision.promote, "reason": decision.reason, "against": outcome.champion}


@flow(name="rollback", validate_parameters=True, on_failure=[mail_on_failure], on_crashed=[mail_on_failure])
def rollback(to: int | None = None, reason: str = "") -> dict[str, Any]:
    """Make the previous champion, or version `to`, the champion again, and record the `reason`."""
    move = promotion.roll_back(to, reason)
    return {"champion": move.champion, "previous": move.before}


@flow(name="evaluate", validate_parameters=True, on_failure=[mail_on_failure], on_crashed=[mail_on_failure])
def evaluate(max_loss: float = 0.05, retrain_deployment: str = "") -> dict[str, Any]:
    """Measure the champion; start a retrain if its edit success dropped by more than `max_loss` since its promotion.

    It is measured on the tasks of its promotion, and compared only if edits, settings, judge and code have not changed.
    retrain_deployment: such as `retrain/weekly-retrain`; empty: never start a retrain. A retrain is started only if a stage is
    out of date. Otherwise ChampionRegressedError is raised, so that the run fails and the notification for failed runs is sent.
    Raises RegistryError if there is no champion.
    """
    champion = registry.version_at(alias_moves.CHAMPION)
    if champion is None:
        raise registry.RegistryError("want a champion to evaluate, got none; run `uv run retrain` first")
    with gate_stage.measuring_slot(Path.cwd()):
        measured = promotion.measure_again(champion, Path.cwd())
    success, before, has_fallen = measured.success, measured.at_promotion, measured.has_fallen(max_loss)
    result = {"version": champion.number, "success": success, "at_promotion": before, "has_fallen": has_fallen, "started": ""}
    if measured.note:
        result["note"] = measured.note
        print(f"== version {champion.number}: {success:.3f} now; {measured.note}", flush=True)
    loss, stale = "", dict[str, tuple[str, ...]]()
    if has_fallen:
        loss = f"edit success of version {champion.number} dropped from {before:.3f} to {success:.3f}"
        stale = dvc_graph.read(Path.cwd()).stale()
        result["reason"] = f"metric: {loss}; out of date: {first_names(list(stale)) or 'nothing'}"
    if stale and retrain_deployment:
        run = run_deployment(retrain_deployment, parameters={"reason": result["reason"]}, timeout=0)
        result["started"] = str(run.id)  # type: ignore[union-attr]
    create_markdown_artifact(f"```\n{result}\n```", key="champion", description="Current measurement of the champion")
    if has_fallen and retrain_deployment and not stale:
        raise ChampionRegressedError(
            f"{loss}; no stage is out of date, so a retrain would produce the same model. Change data or params, or run "
            "`uv run emuedit rollback`"
        )
    return result


@flow(name="backfill", validate_parameters=True, on_failure=[mail_on_failure], on_crashed=[mail_on_failure])
def backfill(versions: list[int] | None = None) -> dict[int, float]:
    """Measure registered `versions`, by default all, with the current judge and edits, and update their tag `edit_success`.

    This keeps versions comparable after a change of the benchmark or its judge. Returns version -> edit success. A version whose
    files are missing, changed or unreadable does not keep it from measuring the others; then BackfillError is raised at the end.
    Any other error stops it at once, such as ServiceError if MLflow or its artifact store cannot be used.
    """
    numbers = versions or [version.number for version in registry.all_versions()]
    results: dict[int, float] = {}
    problems: dict[int, str] = {}
    for number in numbers:
        try:
            results[number] = _measure_and_tag(number)
        except promotion.UNREADABLE as error:
            problems[number] = first_line(error)
            print(f"== version {number}: not measured: {problems[number]}", flush=True)
        else:
            print(f"== version {number}: {results[number]:.3f}", flush=True)
    if problems:
        failed = "; ".join(f"version {number}: {problem}" for number, problem in problems.items())
        raise BackfillError(
            f"want all {len(numbers)} versions measured, got {len(results)}; {failed}. Restore their files, or name the others "
            "in the parameter `versions`"
        )
    return results


def _measure_and_tag(number: int) -> float:
    """Edit success of a version, which is also stored in its tags and its card."""
    with gate_stage.measuring_slot(Path.cwd()):
        measurement = promotion.measure_version(registry.get_version(number), Path.cwd())
    success = {version_card.SUCCESS_TAG: f"{measurement.overall:.4f}"}
    registry.set_version_tags(number, success | {version_card.SUCCESS_CONDITIONS_TAG: measurement.conditions_key})
    version_card.update(number)
    return measurement.overall
