import shutil
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emuedit.cli import main
from emuedit.operations.storage import clone_check, data_manifest, dvc_remote, object_probes
from emuedit.operations.storage.bucket import Bucket
from emuedit.operations.storage.remote_error import RemoteError
from tests.operations.conftest import MOTO

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # every `dvc` takes a second or two

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `emuedit remote ...`; gives exit status, output and errors."""

    def run_remote(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["remote", *words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_remote


@pytest.fixture
def dvc_here_with_moto(request: pytest.FixtureRequest) -> None:
    """With moto, the dvc that `emuedit remote` starts runs in this process; with a real store, in its own, as for users."""
    if request.node.callspec.params["store_url"] == MOTO:
        request.getfixturevalue("dvc_in_process")


@pytest.fixture
def remote(
    project: Path, store_url: str, make_bucket: Callable[..., Bucket], run: Run, monkeypatch: pytest.MonkeyPatch
) -> Bucket:
    """The bucket of the project's DVC remote, after `emuedit remote init`."""
    monkeypatch.setattr(object_probes, "N_LISTED", 3)
    bucket = make_bucket(store_url, versioned=False)
    assert run("init", bucket.location.url, "--endpoint", store_url, "--local")[0] == 0
    return bucket


@pytest.mark.usefixtures("dvc_here_with_moto")
def test_init_check_publish_latest_link_and_gc(
    project: Path, remote: Bucket, run: Run, dvc_run: Callable[..., None], shell: Callable[..., str]
) -> None:
    settings = (project / ".dvc/config.local").read_text()
    assert remote.location.url in settings
    assert not any(word in settings for word in ("access_key", "secret"))
    assert run("check")[0] == 0

    status, _, errors = run("publish")
    assert status == 2
    assert "want all data in the remote, but data/ is missing; run `uv run dvc push` first" in errors
    dvc_run("push", "-q")
    status, output, errors = run("publish")
    assert (status, output.startswith("published as number 1: commit ")) == (0, True), errors
    status, output, _ = run("latest")
    commit = shell("git", "rev-parse", "HEAD", cwd=project).strip()
    assert status == 0
    assert f"commit     {commit}" in output
    assert "by Ada" in output

    (project / "report.html").write_text("<h1>report</h1>")
    status, output, _ = run("link", "report.html", "--hours", "1")
    assert status == 0
    with urllib.request.urlopen(output.strip()) as answer:
        assert (answer.read(), answer.headers["Content-Type"]) == (b"<h1>report</h1>", "text/html")

    (project / "data/b.txt").write_text("never committed")
    dvc_run("add", "-q", "data")
    dvc_run("push", "-q")
    shell("git", "checkout", "-q", "data.dvc", cwd=project)
    dvc_run("checkout", "-q", "--force")
    before = remote.names("files/")
    status, output, _ = run("gc")
    assert (status, remote.names("files/")) == (0, before)
    assert "2 objects" in output
    assert "nothing was deleted" in output
    status, output, _ = run("gc", "--yes")
    assert status == 0
    assert len(remote.names("files/")) == len(before) - 2
    shutil.rmtree(project / ".dvc/cache")
    shutil.rmtree(project / "data")
    dvc_run("pull", "-q")
    assert (project / "data/a.txt").read_text() == "first"


@pytest.mark.parametrize("store_url", [MOTO], indirect=True)  # a store that is killed during uploads lists what it cannot read
@pytest.mark.usefixtures("dvc_in_process")
def test_objects_that_are_listed_but_cannot_be_read_are_found_and_uploaded_again(
    project: Path, remote: Bucket, run: Run, dvc_run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    dvc_run("push", "-q")
    monkeypatch.setattr(data_manifest, "run_dvc", lambda *_: "{}")  # DVC believes the listing
    status, output, errors = run("verify")
    assert (status, output) == (0, "the store has all 2 objects of this commit's data\n"), errors
    listed = remote.sizes("files/")
    (key,) = [key for key in listed if not key.endswith(".dir")]
    remote.delete([{"Key": key}])
    monkeypatch.setattr(Bucket, "sizes", lambda bucket, folder, after="": listed if folder.startswith("files/") else {})
    name = key.removeprefix(remote.location.key(""))
    for command in ("verify", "publish"):
        status, _, errors = run(command)
        assert status == 2
        assert f"the store lacks or cannot read 1 objects ({name})" in errors
        assert "run `emuedit remote verify --repair`" in errors
    file = project / ".dvc/cache" / name
    content = file.read_bytes()
    file.rename(project / "elsewhere")
    status, _, errors = run("verify", "--repair")
    assert status == 2
    assert "in DVC's cache, got none; run this in a clone that has them" in errors
    (project / "elsewhere").rename(file)
    status, output, errors = run("verify", "--repair")
    assert status == 0, errors
    assert output.splitlines() == [f"uploading 1 objects ({name}) again", "the store has all 2 objects of this commit's data"]
    assert remote.get(name) == content


@pytest.mark.parametrize("store_url", [MOTO], indirect=True)  # what DVC does is the subject
@pytest.mark.usefixtures("dvc_in_process")
def test_a_file_that_was_deleted_in_the_remote_is_found_and_uploaded_again(
    project: Path, remote: Bucket, run: Run, dvc_run: Callable[..., None]
) -> None:
    dvc_run("push", "-q")
    (key,) = [key for key in remote.sizes("files/") if not key.endswith(".dir")]
    name = key.removeprefix(remote.location.key(""))
    content = remote.get(name)
    remote.delete([{"Key": key}])
    dvc_run("push", "-q")
    assert remote.get(name) is None, "want the fault of DVC that is the reason for these checks"
    for command in ("verify", "publish"):
        status, _, errors = run(command)
        assert status == 2
        assert f"the store lacks or cannot read 1 objects ({name})" in errors
        assert "run `emuedit remote verify --repair`" in errors
    status, output, errors = run("verify", "--repair")
    assert status == 0, errors
    assert output.splitlines() == [f"uploading 1 objects ({name}) again", "the store has all 2 objects of this commit's data"]
    assert remote.get(name) == content


@pytest.mark.parametrize("store_url", [MOTO], indirect=True)  # what DVC does is the subject
def test_outputs_that_are_never_pushed_are_not_asked_for(
    project: Path, remote: Bucket, run: Run, dvc_run: Callable[..., None], shell: Callable[..., str]
) -> None:
    stages = {
        "cached": "cmd: mkdir local && echo c > local/c.txt, outs: [local: {push: false}]",
        "plain": "cmd: mkdir plain && echo p > plain/p.txt, outs: [plain: {cache: false}]",
    }
    (project / "dvc.yaml").write_text("stages:\n" + "".join(f"  {name}: {{{text}}}\n" for name, text in stages.items()))
    dvc_run("repro", "-q")
    shell("git", "add", "-A", cwd=project)
    shell("git", "commit", "-qm", "stages", cwd=project)
    dvc_run("push", "-q")
    status, output, errors = run("verify")
    assert (status, output) == (0, "the store has all 2 objects of this commit's data\n"), errors


@pytest.mark.parametrize("store_url", [MOTO], indirect=True)  # moto has no roles: the refusal is made here
@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("", "deleted; old versions are kept for 30 days."),
        ("AccessDenied", "deleted; it is unknown whether the bucket keeps old versions, as these credentials may not read it"),
        ("NotImplemented", "deleted permanently."),
        ("NoSuchLifecycleConfiguration", "deleted; old versions are kept and use space, as no rule removes them"),
    ],
)
@pytest.mark.usefixtures("dvc_in_process")
def test_gc_says_only_what_it_knows_about_old_versions(
    code: str, text: str, project: Path, remote: Bucket, run: Run, dvc_run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    dvc_run("push", "-q")
    unused = remote.location.key("files/md5/ff/" + "f" * 30)
    remote.call("put_object", Key=unused, Body=b"of no commit")
    call = Bucket.call

    def refuse(bucket: Bucket, operation: str, **arguments: Any) -> Any:
        refused = "get_bucket_lifecycle_configuration" if "Lifecycle" in code else "get_bucket_versioning"
        if code and operation == refused:
            raise RemoteError(f"refused: {code}", code)
        return call(bucket, operation, **arguments)

    monkeypatch.setattr(Bucket, "call", refuse)
    status, output, errors = run("gc", "--yes")
    assert status == 0, errors
    assert text in output
    assert unused not in remote.sizes("files/")


@pytest.mark.parametrize("store_url", [MOTO], indirect=True)  # what DVC and git do is the subject
@pytest.mark.usefixtures("dvc_in_process")
def test_gc_keeps_what_every_stash_and_an_unreadable_commit_name(
    project: Path, remote: Bucket, run: Run, dvc_run: Callable[..., None], shell: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in ("stashed", "stashed later", "unreadable"):
        (project / "data/a.txt").write_text(name)
        dvc_run("add", "-q", "data")
        dvc_run("push", "-q")
        if name.startswith("stashed"):
            shell("git", "stash", "-q", cwd=project)
    (project / "dvc.yaml").write_text("stages: {a: b: c}\n")
    shell("git", "add", "-A", cwd=project)
    shell("git", "commit", "-qm", "not YAML", cwd=project)
    shell("git", "rm", "-q", "dvc.yaml", cwd=project)
    shell("git", "checkout", "-q", "HEAD~1", "--", "data.dvc", cwd=project)
    shell("git", "commit", "-qm", "back", cwd=project)
    shutil.rmtree(project / ".dvc/cache")  # the listings of folders come from the remote
    before = remote.names("files/")
    monkeypatch.setattr(dvc_remote, "subprocess", subprocess)  # the output of real processes is read
    status, output, errors = run("gc", "--yes")
    assert status == 0, errors
    assert "1 commits have a dvc.yaml that DVC cannot read" in output
    assert "objects that `dvc gc` would have deleted are kept, because a commit or the working folder needs them" in output
    assert remote.names("files/") == before


@pytest.mark.parametrize("store_url", [MOTO], indirect=True)  # what DVC does is the subject
@pytest.mark.usefixtures("dvc_in_process")
def test_gc_keeps_the_uncommitted_data_of_a_pipeline_with_conflict_markers(
    project: Path, remote: Bucket, run: Run, dvc_run: Callable[..., None]
) -> None:
    (project / "dvc.yaml").write_text("stages: {make: {cmd: echo new > out, outs: [out]}}\n")
    dvc_run("repro", "-q")
    dvc_run("push", "-q")
    (project / "dvc.yaml").write_text("<<<<<<< HEAD\nstages: {}\n=======\n>>>>>>> other\n")
    before = remote.names("files/")
    status, _, errors = run("gc", "--yes")
    assert status == 0, errors
    assert remote.names("files/") == before


@pytest.mark.usefixtures("dvc_in_process")
@pytest.mark.parametrize("store_url", [MOTO], indirect=True)  # what DVC and git do is the subject
def test_gc_refuses_a_clone_that_does_not_know_all(
    project: Path, remote: Bucket, run: Run, shell: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shell("git", "clone", "-q", str(project), str(other), cwd=tmp_path)
    shell("git", "commit", "-q", "--allow-empty", "-m", "second", cwd=project)
    shutil.copy(project / ".dvc/config.local", other / ".dvc/config.local")
    monkeypatch.chdir(other)
    status, _, errors = run("gc")
    assert status == 2
    assert "not fetched from the git remote origin: main; `git fetch --tags origin`" in errors
    shell("git", "fetch", "-q", "--tags", "origin", cwd=other)
    commit = shell("git", "commit-tree", "-m", "experiment", "HEAD^{tree}", cwd=project).strip()
    shell("git", "update-ref", "refs/exps/ab/cdef/lucky-name", commit, cwd=project)
    assert "refs/exps/ab/cdef/lucky-name; `git fetch origin 'refs/exps/*:refs/exps/*'`" in run("gc")[2]
    shell("git", "fetch", "-q", "origin", "refs/exps/*:refs/exps/*", cwd=other)
    clone_check.check_clone(other, remote)

    shallow = tmp_path / "shallow"
    shell("git", "clone", "-q", "--depth=1", f"file://{project}", str(shallow), cwd=tmp_path)
    shutil.copy(project / ".dvc/config.local", shallow / ".dvc/config.local")
    monkeypatch.chdir(shallow)
    assert "the clone is shallow" in run("gc")[2]

    monkeypatch.chdir(project)
    shell("git", "worktree", "add", "-q", "--detach", str(tmp_path / "worktree"), cwd=project)
    (tmp_path / "worktree/data.dvc").write_text("outs: []\n")
    errors = run("gc")[2]
    assert f"the worktree {tmp_path / 'worktree'} has uncommitted changes in dvc.lock" in errors


@pytest.mark.usefixtures("dvc_in_process")
def test_a_remote_that_is_a_folder(project: Path, run: Run, dvc_run: Callable[..., None], aws_environment: None) -> None:
    for command in ("check", "gc", "latest", "publish"):
        assert "want a default DVC remote, got none" in run(command)[2]
    dvc_run("remote", "add", "-q", "--default", "folder", "/tmp/nowhere")
    status, _, errors = run("check")
    assert status == 2
    assert "want a DVC remote in S3-compatible storage, got 'folder'" in errors


def test_init_writes_no_credentials(project: Path, run: Run, aws_environment: None) -> None:
    before = (project / ".dvc/config").read_text()
    status, _, errors = run("init", "s3://key:hidden@bucket/prefix")
    assert status == 2
    assert "want a URL without credentials" in errors
    assert "hidden" not in errors
    assert (project / ".dvc/config").read_text() == before
