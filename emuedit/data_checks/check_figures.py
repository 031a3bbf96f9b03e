"""The measured value of every check, from a profile and its optional reference."""

from collections.abc import Collection

from emuedit.data_checks import distribution_drift as drift
from emuedit.data_checks.check_bounds import CHECKS, Measured
from emuedit.data_checks.pair_profile import Embeddings, PairProfile
from emuedit.data_checks.reference_profile import Reference

DRIFT = ("new_words", "task_drift", "picture_drift")
"""Checks that need a reference."""
SIGNIFICANCE = 0.01
"""Highest p-value of a drift of the images before or after; others are not counted, since small samples vary. Ours."""
_MIN_SAMPLE = 8
"""Distinct source images that a comparison needs on each side. The permutation test holds for any number of them."""
_LISTED_WORDS = 12
_EXCLUDED = {
    "caption_words": "empty captions of imported pairs",
    "other_language": "imported pairs without captions",
    "most_repeated_instruction": "instructions of imported pairs",
    "picture_text": "empty captions of imported pairs",
}
"""Check -> what it leaves out."""


def measure_checks(
    profile: PairProfile, embeddings: Embeddings, reference: Reference, wanted_tasks: Collection[str]
) -> dict[str, Measured]:
    """Check -> measured value. `wanted_tasks`: tasks that must have pairs."""
    n_pairs, tasks = profile.n_pairs, profile.tasks
    expected = {*wanted_tasks, *(reference.profile.tasks if reference.profile else ())}
    missing = sorted(task for task in expected if not tasks.get(task))
    rarest, largest = min(tasks, key=lambda task: tasks[task], default=""), max(tasks, key=lambda task: tasks[task], default="")
    measured = {
        "kept_pairs": Measured(n_pairs),
        "pairs_per_task": Measured(tasks.get(rarest, 0), rarest),
        "missing_tasks": Measured(len(missing), ", ".join(missing)),
        "largest_task": Measured(tasks[largest] / n_pairs if n_pairs else None, largest),
        "task_balance": Measured(drift.evenness(tasks) if n_pairs else None),
    }
    measured |= {name: Measured(value) for name, value in (profile.texts | profile.pictures).items()}
    for name, n_excluded in profile.excluded.items():
        measured[name] = Measured(measured.get(name, Measured(None)).value, f"without {n_excluded} {_EXCLUDED[name]}")
    if reference.profile is None:
        measured |= {name: Measured(None, reference.note) for name in DRIFT}
    else:
        measured |= _measure_drift(profile, embeddings, reference.profile, reference)
    return {name: measured.get(name, Measured(None, "not measured")) for name in CHECKS}


def _measure_drift(
    profile: PairProfile, embeddings: Embeddings, former: PairProfile, reference: Reference
) -> dict[str, Measured]:
    unseen = drift.new_words(profile.words, former.words)
    listed = ", ".join(list(unseen)[:_LISTED_WORDS]) + (", ..." if len(unseen) > _LISTED_WORDS else "")
    return {
        "new_words": Measured(sum(unseen.values()) / max(1, sum(profile.words.values())), listed),
        "task_drift": Measured(drift.task_divergence(profile.tasks, former.tasks) if profile.tasks and former.tasks else None),
        "picture_drift": _picture_drift(profile, embeddings, former, reference),
    }


def _picture_drift(profile: PairProfile, embeddings: Embeddings, former: PairProfile, reference: Reference) -> Measured:
    """The larger CMMD among the images before and after that is significant; 0 if none is. Of one pair per source image.

    Each side has a permutation test at SIGNIFICANCE / 2 (Bonferroni's correction for two tests).
    """
    if profile.clip != former.clip:
        return Measured(None, f"not comparable: CLIP is {profile.clip}, the reference's is {former.clip}")
    here, there = drift.one_pair_per_source(embeddings), drift.one_pair_per_source(reference.embeddings)
    n_here, n_there = len(here.get("source", ())), len(there.get("source", ()))
    if min(n_here, n_there) < _MIN_SAMPLE:
        return Measured(None, f"not comparable: {n_here} source images here, {n_there} in the reference; want {_MIN_SAMPLE}")
    tested = {side: (drift.cmmd(here[side], there[side]), drift.cmmd_p_value(here[side], there[side])) for side in here}
    significant = {side: value for side, (value, p) in tested.items() if p <= SIGNIFICANCE / len(tested)}
    if not significant:
        sides = ", ".join(f"{value:.3f} of the {side} images (p = {p:.3f})" for side, (value, p) in tested.items())
        return Measured(0.0, f"within chance: CMMD {sides}")
    side = max(significant, key=lambda name: significant[name])
    return Measured(significant[side], f"of the {side} images, p = {tested[side][1]:.3f}")
