"""The origin of a version: the commit and the params with which the retrain started, and what was not committed then."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from emuedit.config import ParamsError
from emuedit.git import GitError
from emuedit.promotion import lineage, version_card
from emuedit.tracking import mlflow_client, registry, runs
from flows import dvc_graph, release, result_origin
from flows.retrain_options import RetrainOptions

Shell = Callable[..., str]
LOCK = """\
stages:
  network:
    deps:
    - {path: code, md5: c0de.dir}
    - {path: raw.csv, md5: aaaa}
    outs:
    - {path: models/editor, md5: eeee.dir}
    - {path: reports, md5: ffff.dir}
"""


@pytest.fixture
def graph(project: Path, shell: Shell) -> dvc_graph.Graph:
    """A committed project with the results of its two stages."""
    for name, text in {
        "models/editor/model_index.json": "{}", "models/editor/weights.safetensors": "0.5", "code/network.py": "1",
        "reports/metrics.json": '{"edit_success": {"emuedit": {"overall": 0.5, "local": 0.5}, "identity": {"overall": 0.1}}}',
        "dvc.lock": LOCK, "data/dataset/card.md": "# Data card: the world",
    }.items():  # fmt: skip
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    (project / ".gitignore").write_text("*.db\n/mlruns\n/models\n/data\n")
    shell("git", "add", ".", cwd=project)
    shell("git", "commit", "-qm", "first", cwd=project)
    stages = (
        dvc_graph.Stage("dataset", (), (Path("data/dataset"),)),
        dvc_graph.Stage("network", (), (Path("models/editor"),), meta={"register": "editor"}),
        dvc_graph.Stage("scores", ("network",), (Path("reports"),), meta={"gate": "emuedit", "report": True}),
    )
    return dvc_graph.Graph(project, stages, (Path("reports/metrics.json"),), {})


def tags_of(graph: dvc_graph.Graph, at_start: result_origin.StartState | None = None) -> dict[str, str]:
    return result_origin.make_tags(graph, "content", at_start or result_origin.read_start(graph.root))


@pytest.mark.slow
def test_what_is_committed_and_edited_during_a_retrain_is_not_its_origin(
    project: Path, graph: dvc_graph.Graph, store: str, weightless_model: None, shell: Shell
) -> None:
    first = shell("git", "rev-parse", "HEAD", cwd=project).strip()
    params = (project / "params.yaml").read_text()
    at_start = result_origin.read_start(project)
    (project / "params.yaml").write_text(params.replace("steps: 7", "steps: 8"))
    shell("git", "commit", "-qam", "second", cwd=project)
    (project / "make.py").write_text("")
    result = release.finish(graph, release.start(project), {"network": 1.0}, RetrainOptions(reason="person: test"), at_start)
    assert result.version is not None
    version = registry.get_version(result.version.number)
    assert (version.tags["git.commit"], version.tags["git.dirty"], version.tags["git.changes"]) == (first, "false", "")
    assert lineage.read_file(version, "params.yaml") == params
    assert lineage.read_file(version, "dvc.lock") == LOCK
    assert mlflow_client.client().get_run(version.run_id).data.params["scores.settings.steps"] == "7"
    assert '"steps": 7' in (registry.download_version(version.uri) / "settings.json").read_text()
    assert f"commit   {first} (clean)" in lineage.format_text(version, [])

    card = str(runs.read_text(version.run_id, version_card.CARD))
    assert "| gate | promoted: edit success 0.500 against 0.100 of the identity baseline" in card
    assert "| local | 0.500 | - |" in card
    assert runs.read_text(version.run_id, "cards/dataset/card.md") == "# Data card: the world"
    description = mlflow_client.client().get_model_version(registry.MODEL_NAME, "1").description
    assert description.startswith("Edit success 0.5000 in its own evaluation. Gate: promoted")

    result_origin.tag_published(version, "retrained", "b" * 40)
    version = registry.get_version(1)
    assert version.tags["git.branch_commit"] == "b" * 40
    assert f"branch   retrained at {'b' * 40}" in lineage.format_text(version, [])


def test_uncommitted_changes_make_a_version_dirty(project: Path, graph: dvc_graph.Graph) -> None:
    assert tags_of(graph)["git.dirty"] == "false"
    (project / "make.py").write_text("")
    (project / "dvc.lock").write_text(LOCK + "# the results of this retrain\n")
    assert (tags_of(graph)["git.dirty"], tags_of(graph)["git.changes"]) == ("true", "make.py")


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("notes.txt", ""),
        ("experiments/try.py", ""),
        ("reports/picture.png", ""),
        ("code/new.py", "code/new.py"),
        ("raw.csv", "raw.csv"),
        ("raw.csv.dvc", "raw.csv.dvc"),
    ],
)
def test_untracked_files_count_only_if_they_are_inputs(project: Path, graph: dvc_graph.Graph, path: str, changes: str) -> None:
    (project / path).parent.mkdir(exist_ok=True)
    (project / path).write_text("")
    assert tags_of(graph)["git.changes"] == changes
    assert tags_of(graph)["git.dirty"] == str(bool(changes)).lower()


def test_outputs_that_git_tracks_are_no_changes(project: Path, graph: dvc_graph.Graph) -> None:
    (project / "reports/metrics.json").write_text("{}")
    assert tags_of(graph)["git.dirty"] == "false"


def test_the_items_of_a_matrix_have_one_tag_with_their_number_formats(project: Path) -> None:
    """MLflow refuses `@` in the key of a tag of a version."""
    for name, dtype in {"add": "float32", "local": "bfloat16", "style": "float32"}.items():
        (project / "data" / name).mkdir(parents=True)
        (project / "data" / name / "summary.json").write_text(json.dumps({"params": {"dtype": dtype}}))
    stages = [dvc_graph.Stage(f"pairs@{name}", (), (Path("data", name),)) for name in ("add", "local", "style")]
    tags = tags_of(dvc_graph.Graph(project, tuple(stages), (), {}))
    assert {key: value for key, value in tags.items() if key.startswith("dtype.")} == {"dtype.pairs": "bfloat16, float32"}


@pytest.mark.parametrize("out", ["models/editor@lora", "data/a+b", "reports/n=4", "data/pairs (new)", "data/" + "x" * 250])
def test_an_out_that_mlflow_would_refuse_in_a_tag_is_refused_before_the_first_stage(project: Path, out: str) -> None:
    """A version has the hash of each out in a tag, and the registration failed after every training."""
    editor = dvc_graph.Stage("network", (), (Path("models/editor"),), meta={"register": "editor"})
    graph = dvc_graph.Graph(project, (editor, dvc_graph.Stage("pairs", (), (Path(out),))), (), {})
    with pytest.raises(dvc_graph.GraphError, match=rf"got {re.escape(out)}; rename it in dvc.yaml"):
        release.check(graph, RetrainOptions(), will_run=False)
    release.check(graph, RetrainOptions(registry=False), will_run=False)
    without_model = dvc_graph.Graph(project, graph.stages[1:], (), {})
    release.check(without_model, RetrainOptions(), will_run=False)


def test_the_same_outs_are_refused_as_by_mlflow() -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_model_version_tag

    for path in ("data/ä b.c-d_e:f/1", "a,b", "a@b", "a(b", "a'b", "a\nb", "x" * 246, "x" * 247):
        is_refused = False
        try:
            _validate_model_version_tag(f"dvc.{path}", "hash")
        except MlflowException:
            is_refused = True
        assert runs.is_valid_key(f"dvc.{path}") != is_refused, path


def test_a_project_in_a_folder_of_a_repository_has_only_its_changes(project: Path, graph: dvc_graph.Graph) -> None:
    (project / "make.py").write_text("")
    (project / "code/network.py").write_text("2")
    at_start = result_origin.read_start(project / "code")
    assert (at_start.changed, at_start.untracked) == (("network.py",), ())


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    graph = dvc_graph.Graph(tmp_path, (), (), {})
    assert not any(key.startswith("git.") for key in tags_of(graph))
    (tmp_path / "params.yaml").write_text("[")
    with pytest.raises(ParamsError, match="not valid YAML"):
        result_origin.read_start(tmp_path)


def test_changes_that_git_cannot_list_are_an_error(project: Path, graph: dvc_graph.Graph) -> None:
    """The results would be recorded as made from the commit."""
    (project / ".git/index").write_bytes(b"damaged")
    with pytest.raises(GitError, match=r"`git diff .*` failed: .*index"):
        result_origin.read_start(project)


def test_a_branch_that_cannot_be_tagged_is_reported(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    result_origin.tag_published(None, "retrained", "b" * 40)
    with pytest.MonkeyPatch.context() as away:
        away.setattr(registry, "client", lambda: (_ for _ in ()).throw(ConnectionError("refused")))
        result_origin.tag_published(registry.ModelVersion(1, "run"), "retrained", "b" * 40)
    assert "== version 1 was not tagged with the commit bbbbbbbb of retrained: MLflow at " in capsys.readouterr().out
