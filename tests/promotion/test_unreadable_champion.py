"""A champion whose files cannot be read is replaced by force, and otherwise the error names what to do."""

from collections.abc import Callable
from pathlib import Path

import pytest

from emuedit.data.file_manifest import ManifestError
from emuedit.editor.package_folder import PackageError
from emuedit.promotion import comparison, promote
from emuedit.promotion.gate import GateError
from emuedit.tracking import alias_moves, registry
from tests.promotion.stores import number_at

PARAMS = """\
world: {benchmark: toyworld/edits/toy_benchmark.py}
evaluation: {tasks: [remove], n_edits: 4}
"""


@pytest.fixture
def workspace(versions: int, tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "models/editor").mkdir(parents=True)
    alias_moves.move_champion(1, "first")
    return tmp_path


def raises(error: Exception) -> Callable[..., Path]:
    def call(*arguments: object) -> Path:
        raise error

    return call


ERRORS = [registry.RegistryError("its files are missing"), ManifestError("weights have changed"), PackageError("no editor")]


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS)
def test_an_unreadable_champion_is_replaced_by_force_only(
    workspace: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "download_version", raises(error))
    version = registry.get_version(2)
    message = (
        rf"want a champion with readable files, got version 1: {error}; .* `emuedit rollback --to N` or `emuedit promote N --f"
    )
    with pytest.raises(GateError, match=message):
        promote.promote(version, workspace, workspace / "models")
    assert number_at("champion") == 1
    outcome = promote.promote(version, workspace, workspace / "models", force_reason="its files are gone")
    assert (outcome.decision.promote, number_at("champion"), number_at("previous")) == (True, 2, 1)
    move = alias_moves.history()[-1]
    assert move.is_forced
    assert move.reason.startswith(
        f"forced: its files are gone; the gate: want a champion with readable files, got version 1: {error}"
    )
    assert registry.get_version(2).tags[promote.STATE_TAG] == promote.PROMOTED


@pytest.mark.slow
def test_a_champion_that_this_code_cannot_open_is_unreadable_too(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / "models/editor/model_index.json").write_text("{}")
    monkeypatch.setattr(registry, "download_version", lambda uri: workspace / "models")
    monkeypatch.setattr(comparison, "measure", raises(PackageError("an editor of another release")))
    with pytest.raises(GateError, match="want a champion with readable files, got version 1: an editor of another release"):
        promote.promote(registry.get_version(2), workspace, workspace / "models")
