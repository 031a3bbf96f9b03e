"""The settings of DVC's remote: what is written is what DVC uses, and all forms that DVC reads are read."""

from collections.abc import Callable
from pathlib import Path

import pytest

from emuedit.cli import main
from emuedit.operations.storage import bucket_setup, dvc_remote
from emuedit.operations.storage.bucket import Bucket, RemoteLocation
from emuedit.operations.storage.dvc_remote import read_location, write_location
from emuedit.operations.storage.remote_error import RemoteError

TEAM = RemoteLocation.parse("s3://team-bucket/emuedit", "https://minio.example.org")
MINE = RemoteLocation.parse("s3://emuedit/emuedit", "http://127.0.0.1:8504")
AWS = RemoteLocation.parse("s3://my-aws-bucket/emuedit")


@pytest.mark.slow
@pytest.mark.usefixtures("dvc_in_process")
def test_a_remote_that_the_local_file_would_replace_is_refused(project: Path, dvc_run: Callable[..., None]) -> None:
    write_location(project, "s3", MINE, local=True)
    before = (project / ".dvc/config").read_text()
    message = r"got remote\.s3\.url=s3://emuedit/emuedit, remote\.s3\.endpointurl=\S+ in \.dvc/config\.local; .*remove --local s3"
    with pytest.raises(RemoteError, match=message):
        write_location(project, "s3", TEAM, local=False)
    assert (project / ".dvc/config").read_text() == before
    with pytest.raises(RemoteError, match=r"core\.remote=s3 in \.dvc/config\.local; .*--local --unset core\.remote`\)"):
        write_location(project, "team", TEAM, local=False)
    dvc_run("remote", "remove", "--local", "s3")
    write_location(project, "s3", TEAM, local=False)
    assert read_location(project) == ("s3", TEAM)
    assert write_location(project, "s3", MINE, local=True) == TEAM.url, "a local one may replace it"
    assert read_location(project) == ("s3", MINE)


@pytest.mark.slow
@pytest.mark.usefixtures("dvc_in_process")
def test_a_local_remote_that_would_get_options_of_the_shared_one_is_refused(project: Path) -> None:
    write_location(project, "s3", TEAM, local=False)
    message = r"got remote\.s3\.endpointurl=https://minio\.example\.org in \.dvc/config; .*--name"
    with pytest.raises(RemoteError, match=message):
        write_location(project, "s3", AWS, local=True)
    assert read_location(project) == ("s3", TEAM)
    write_location(project, "Mine", AWS, local=True)
    assert read_location(project) == ("mine", AWS)


@pytest.mark.slow
@pytest.mark.usefixtures("dvc_in_process")
def test_init_changes_no_bucket_of_a_remote_that_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_location(project, "s3", MINE, local=True)
    monkeypatch.setattr(bucket_setup, "create_bucket", lambda bucket: pytest.fail(f"created {bucket.location}"))
    assert main(["remote", "init", TEAM.url, "--endpoint", str(TEAM.endpoint)]) == 2
    assert "want the DVC remote 's3' to be only what .dvc/config says" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("dvc_in_process")
def test_other_options_stay_while_the_store_does(project: Path, dvc_run: Callable[..., None]) -> None:
    with_region = RemoteLocation.parse(TEAM.url, TEAM.endpoint, "us-east-1")
    write_location(project, "s3", with_region, local=False)
    dvc_run("remote", "modify", "s3", "ssl_verify", "/etc/ssl/team-ca.pem")
    assert write_location(project, "s3", TEAM, local=False) is None
    _, location = read_location(project)
    assert (location.region, location.verify) == (None, "/etc/ssl/team-ca.pem")
    write_location(project, "s3", with_region, local=False)
    _, location = read_location(project)
    assert (location.region, location.verify) == ("us-east-1", "/etc/ssl/team-ca.pem")
    write_location(project, "s3", RemoteLocation.parse(TEAM.url, "https://other.example.org"), local=False)
    assert read_location(project)[1].verify is None, "it is of another store"


def test_settings_are_read_in_all_forms_of_dvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".dvc").mkdir()
    Path(dvc_remote.CONFIG).write_text("[core]\n    remote = s3\n['remote \"s3\"']\n    url = s3://team/emuedit\n")
    Path(dvc_remote.LOCAL_CONFIG).write_text('[remote "s3"]\n    secret_access_key = ab%cd\n')
    assert dvc_remote.read_s3_remote() == {"url": "s3://team/emuedit", "secret_access_key": "ab%cd"}
    Path(dvc_remote.LOCAL_CONFIG).write_text('[remote "s3"]\n    url = /a/folder\n')
    assert dvc_remote.read_s3_remote() is None


@pytest.mark.slow
def test_dvc_reaches_a_store_of_this_machine_past_a_proxy(
    project: Path, moto_url: str, make_bucket: Callable[..., Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = make_bucket(moto_url)
    options = f"url = {bucket.location.url}\n    endpointurl = {moto_url}\n"
    (project / dvc_remote.LOCAL_CONFIG).write_text(f"[core]\n    remote = s3\n['remote \"s3\"']\n    {options}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    dvc_remote.run_dvc(["push", "-q"], project)
    assert len(bucket.names("files/")) == 2
