"""The reference profile of a dataset: the champion's, another run's, or none.

A validation report is logged to the retrain's run, so the profile of a registered version is an artifact of its run.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from emuedit.data_checks import pair_profile
from emuedit.data_checks.pair_profile import EMBEDDINGS, PROFILE, Embeddings, PairProfile, ProfileError

CHAMPION = "champion"


@dataclass(frozen=True)
class Reference:
    """The reference of a comparison."""

    name: str
    """`models:/emuedit-editor/3` or a folder; empty if there is none."""
    profile: PairProfile | None = None
    embeddings: Embeddings = field(default_factory=dict)
    note: str = ""
    """Why there is none."""


def resolve(reference: str | None, root: Path, folder: str) -> Reference:
    """Resolve `validation.reference`. `folder`: artifact folder of the validation report in a run.

    Raises ProfileError for a folder without a profile, and ServiceError if the registry cannot be reached: then it is unknown
    whether there is a champion, and a pass would be kept by DVC. A champion without a profile is not used as a reference.
    """
    if reference is None:
        return Reference("", note="no reference: validation.reference is null")
    if reference == CHAMPION:
        return _of_champion(folder)
    profile, embeddings = pair_profile.read(root / reference)
    return Reference(reference, profile, embeddings)


def _of_champion(folder: str) -> Reference:
    from emuedit.tracking import service_errors, store_address

    if not store_address.has_store():
        return Reference("", note="no reference: no champion is registered")

    try:
        service_errors.check()
        with service_errors.converted():
            return _of_registered_champion(folder)
    except service_errors.ServiceError as error:
        raise service_errors.ServiceError(
            f"want the champion's data to compare with, but the registry cannot be reached: {error}. Start MLflow and run this "
            "again, or set validation.reference: null in params.yaml to compare with nothing"
        ) from error


def _of_registered_champion(folder: str) -> Reference:
    from emuedit.tracking import registry, runs

    version = registry.version_at(CHAMPION)
    if version is None:
        return Reference("", note="no reference: no champion is registered")
    with tempfile.TemporaryDirectory() as temporary:
        names = (f"{folder}/{name}" for name in (PROFILE, EMBEDDINGS))
        if not all(runs.download_file(version.run_id, name, Path(temporary)) for name in names):
            return Reference("", note=f"no reference: the champion {version.uri} was registered without {folder}/{PROFILE}")
        try:
            profile, embeddings = pair_profile.read(Path(temporary) / folder)
        except ProfileError as error:
            raise ProfileError(f"the champion {version.uri}: {error}; or set validation.reference to null") from error
    return Reference(version.uri, profile, embeddings)
