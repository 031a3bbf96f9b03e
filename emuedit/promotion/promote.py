"""Promotion of a registered version: compare it with the current champion, then promote or refuse it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from emuedit import config
from emuedit.data.file_manifest import ManifestError
from emuedit.editor.package_folder import PackageError, find_package
from emuedit.promotion import gate, version_card
from emuedit.promotion.gate import Decision, Measurement
from emuedit.promotion.gate_settings import SECTION, GateSettings
from emuedit.tracking import alias_moves, registry
from emuedit.tracking.move_tickets import DONE, Move
from emuedit.tracking.registry import ModelVersion

STATE_TAG, REASON_TAG, TABLE_TAG, TASKS_TAG, AGAINST_TAG, CONDITIONS_TAG = (
    "gate.state", "gate.reason", "gate.table", "gate.tasks", "gate.against", "gate.items",
)  # fmt: skip
PENDING, PROMOTED, REFUSED = "pending", "promoted", "refused"
CHANGED = "conditions changed since the promotion"
UNREADABLE = (registry.RegistryError, PackageError, ManifestError)
"""Errors for a version whose files are missing, changed or not a model package."""
_TRIES = 5
"""Maximum number of comparisons if the champion keeps changing."""


@dataclass(frozen=True)
class PromotionOutcome:
    """Result of a promotion."""

    version: ModelVersion
    decision: Decision
    champion: int | None
    """The champion with which it was compared."""
    move: Move | None
    """None if it was refused, or was the champion already."""


@dataclass(frozen=True)
class Remeasurement:
    """Edit success of a version now and at its promotion, in [0, 1]: the mean over the same trained tasks."""

    success: float
    at_promotion: float | None
    """None if the gate measured nothing, or none of the current tasks."""
    tasks: tuple[str, ...]
    note: str = ""
    """Why the two cannot be compared: edits, settings or judge have changed. Empty if they can."""

    def has_fallen(self, max_loss: float) -> bool:
        """Whether success dropped by more than `max_loss` under the conditions of the promotion."""
        return not self.note and self.at_promotion is not None and self.at_promotion - self.success > max_loss


def read_gate_settings(root: Path) -> GateSettings:
    """The section `promotion` of the workspace's `params.yaml`; the defaults if there is none."""
    return config.load_optional(GateSettings, SECTION, root / config.PARAMS_FILE)


def compare_with_champion(
    package: Path, name: str, champion: ModelVersion | None, root: Path, section: str = "evaluation"
) -> Decision:
    """Measure a package and the champion on the same edits now, and apply the gate.

    The edits are those of the workspace's evaluation, and of the tasks with which the champion was promoted. Without a champion,
    the package must beat the identity baseline. Raises GateError for a champion whose files are missing or damaged, and for
    measurements that allow no decision, and ServiceError if MLflow or its artifact store cannot be used.
    """
    from emuedit.promotion import comparison  # imports torch

    settings = read_gate_settings(root)
    if champion is None:
        conditions = comparison.read_conditions(root, section)
        identity = comparison.measure_nothing(conditions, root)
        return gate.decide(comparison.measure(package, name, conditions, root), identity, settings, is_first=True)
    tasks_at_promotion = [task for task in champion.tags.get(TASKS_TAG, "").split(",") if task]
    conditions = comparison.read_conditions(root, section, tasks_at_promotion)
    comparison.check_tasks(conditions, champion.uri)
    try:
        champion_package = find_package(registry.download_version(champion.uri))
        of_champion = comparison.measure(champion_package, champion.uri, conditions, root)
    except UNREADABLE as error:
        raise gate.GateError(
            f"want a champion with readable files, got version {champion.number}: {error}; restore its files, or replace it by "
            "`emuedit rollback --to N` or `emuedit promote N --force REASON`"
        ) from error
    measurements = [comparison.measure(package, name, conditions, root), of_champion]
    speeds = comparison.measure_speed([package, champion_package], conditions)
    new, old = (replace(measurement, seconds_per_edit=seconds) for measurement, seconds in zip(measurements, speeds, strict=True))
    return gate.decide(new, old, settings)


def promote(
    version: ModelVersion, root: Path, package: Path | None = None, section: str = "evaluation", force_reason: str = ""
) -> PromotionOutcome:
    """Compare a version with the champion, and make it the champion if the promotion gate accepts it or a person forces it.

    package: folder of the version's files; None: they are downloaded. Give the workspace's models only if the stage `evaluation`
    is up to date for DVC, because its results are then used. force_reason: why a person overrules a refusal; it is recorded. The
    decision is recorded in the version's tags. Raises GateError for an unreadable champion or measurements that allow no
    decision, unless a reason to force it is given, ChampionChangedError when the champion changes faster than versions can be
    compared, and ServiceError if MLflow or its artifact store cannot be used.
    """
    folder = package or find_package(registry.download_version(version.uri))
    for _ in range(_TRIES - 1):
        alias_moves.repair()
        try:
            return _promote_once(version, root, folder, section, force_reason)
        except alias_moves.ChampionChangedError as error:
            print(f"promote: {error}", flush=True)
    alias_moves.repair()
    return _promote_once(version, root, folder, section, force_reason)


def _promote_once(version: ModelVersion, root: Path, package: Path, section: str, force_reason: str) -> PromotionOutcome:
    """`promote`, but raise ChampionChangedError if the champion changed during the comparison."""
    champion = registry.version_at(alias_moves.CHAMPION)
    if champion is not None and champion.number == version.number:
        reason = alias_moves.reason_of(version)  # it may have been moved by a process that was killed then
        _record(version, {STATE_TAG: PROMOTED, REASON_TAG: reason})
        text = "it is the champion already" + (f": {reason}" if reason else "")
        return PromotionOutcome(version, Decision(True, text), champion.number, None)
    if _was_replaced(version) and not force_reason:
        reason = f"{alias_moves.reason_of(version)}; it was the champion, and was replaced"
        _record(version, {STATE_TAG: PROMOTED, REASON_TAG: reason})
        return PromotionOutcome(version, Decision(False, reason), champion.number if champion else None, None)
    compared = champion or registry.version_at(alias_moves.PREVIOUS)  # a deleted champion is no reason to accept anything
    if compared is not None and compared.number == version.number:
        compared = None
    try:
        decision = compare_with_champion(package, version.uri, compared, root, section)
    except gate.GateError as error:
        if not force_reason:
            raise
        decision = Decision(False, str(error))
    number = champion.number if champion else None
    is_promoted = decision.promote or bool(force_reason)
    is_overruled = bool(force_reason) and not decision.promote
    reason = f"forced: {force_reason}; the gate: {decision.reason}" if is_overruled else decision.reason
    measured = {
        AGAINST_TAG: str(compared.number if compared else ""),
        TABLE_TAG: json.dumps([(row.name, row.n, row.champion, row.challenger) for row in decision.rows]),
        TASKS_TAG: ",".join(row.name for row in decision.rows if row.name != gate.OVERALL),
        CONDITIONS_TAG: decision.conditions_key,
    }
    registry.set_version_tags(version.number, measured)  # before the move: a killed process leaves a measured champion
    move = None
    if is_promoted:
        move = alias_moves.move_champion(version.number, reason, expected=number, is_forced=is_overruled)
    else:
        alias_moves.check_champion(version.number, expected=number)
    _record(version, {STATE_TAG: PROMOTED if is_promoted else REFUSED, REASON_TAG: reason})
    return PromotionOutcome(version, replace(decision, promote=is_promoted, reason=reason), number, move)


def _was_replaced(version: ModelVersion) -> bool:
    """Whether a process that was killed before it recorded its decision made a version the champion, which it is no more."""
    return version.tags.get(STATE_TAG) == PENDING and any(
        (move.state, move.kind) == (DONE, "promotion") and move.is_to(version) for move in alias_moves.history()
    )


def _record(version: ModelVersion, tags: Mapping[str, str]) -> None:
    """Record a decision in the tags and the card of a version."""
    registry.set_version_tags(version.number, tags)
    version_card.update(version.number)


def measure_version(
    version: ModelVersion, root: Path, section: str = "evaluation", tasks: Sequence[str] = (), afresh: bool = False
) -> Measurement:
    """A registered version on the edits of the workspace's evaluation, with the current judge and code.

    tasks: used instead of the evaluation's tasks, if the benchmark has edits of them. afresh: see `comparison.measure`.
    """
    from emuedit.promotion import comparison  # imports torch

    conditions = comparison.read_conditions(root, section)
    if tasks:
        conditions = comparison.with_tasks(conditions, tasks)
    return comparison.measure(find_package(registry.download_version(version.uri)), version.uri, conditions, root, afresh)


def measure_again(version: ModelVersion, root: Path) -> Remeasurement:
    """Compare a version's current success, measured now, with its promotion, over the tasks that were compared then."""
    success_at_promotion = {str(row[0]): float(row[3]) for row in json.loads(version.tags.get(TABLE_TAG) or "[]")}
    success_at_promotion.pop(gate.OVERALL, None)
    measurement = measure_version(version, root, tasks=list(success_at_promotion), afresh=True)
    tasks = [task for task in measurement.trained if task in success_at_promotion]
    if not tasks:
        return Remeasurement(measurement.overall, None, tuple(measurement.trained), CHANGED if success_at_promotion else "")
    n_lost = len(success_at_promotion) - len(set(measurement.success) & set(success_at_promotion))
    notes = [] if version.tags.get(CONDITIONS_TAG) == measurement.conditions_key else [CHANGED]
    notes += [f"the benchmark has no edits of {n_lost} of its tasks"] if n_lost else []
    at_promotion = sum(success_at_promotion[task] for task in tasks) / len(tasks)
    return Remeasurement(measurement.share(tasks), at_promotion, tuple(tasks), "; ".join(notes))


def roll_back(to: int | None = None, reason: str = "") -> Move:
    """Make `previous`, or version `to`, the champion again.

    A deleted champion, whose alias MLflow deletes with it, does not prevent this. Raises RegistryError if there is no earlier
    champion, or if the files of the version cannot be read.
    """
    alias_moves.repair()
    champion, previous = (registry.version_at(alias) for alias in (alias_moves.CHAMPION, alias_moves.PREVIOUS))
    before = champion.number if champion else None
    number = to if to is not None or previous is None else previous.number
    if number is None and before is None:
        raise registry.RegistryError(
            "want a champion to roll back from, got none; name a version with --to, see `emuedit models`, or run `uv run retrain`"
        )
    if number is None or number == before:
        target = f"version {number}, the champion" if number else "no alias previous"
        raise registry.RegistryError(
            f"no earlier champion to roll back to (got {target}); name a version with --to, see `emuedit models`"
        )
    target_version = registry.get_version(number)
    try:
        find_package(registry.download_version(target_version.uri))
    except UNREADABLE as error:
        consequence = f"so version {before} stays champion" if before else "so there is still no champion"
        raise registry.RegistryError(
            f"want a version with readable files, got {number}, {consequence} ({error}); "
            "choose another one with --to, see `emuedit models`"
        ) from error
    text = reason or (f"rollback from version {before}" if before else "rollback; no version was the champion")
    return alias_moves.move_champion(number, text, kind="rollback", expected=before)
