"""A password in an address is for the server alone: nothing that is printed, logged or sent on has it."""

import contextlib
import logging
from pathlib import Path
from typing import Any

import pytest

from emuedit.operations.health import server_checks
from emuedit.operations.servers import http_probe
from emuedit.tracking import mlflow_client, registry, service_errors, stats
from flows import dvc_graph, prefect_access, retrain
from flows.retrain_result import RetrainResult
from tests.doors.fake_servers import broken_server

PASSWORD = "4ecret-of-the-test"
URIS = (f"postgresql://emuedit:{PASSWORD}@db/mlflow", f"https://user:{PASSWORD}@host")


@pytest.fixture(params=URIS)
def uri(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", request.param)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return str(request.param)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://a:p@db/mlflow", "postgresql://a:***@db/mlflow"),
        ("postgresql+psycopg2://a:p/w@rd@db:5432/mlflow", "postgresql+psycopg2://a:***@db:5432/mlflow"),
        (
            "postgresql://db/mlflow?user=a&password=p&sslmode=require",
            "postgresql://db/mlflow?user=a&password=***&sslmode=require",
        ),
        ("GET https://a:p@host/api failed, as did http://:p@host", "GET https://a:***@host/api failed, as did http://:***@host"),
        ("http://127.0.0.1:5000/#/models/editor@champion", "http://127.0.0.1:5000/#/models/editor@champion"),
        ("models:/emuedit-editor@champion", "models:/emuedit-editor@champion"),
        ("sqlite:////data/a@b/mlflow.db", "sqlite:////data/a@b/mlflow.db"),
    ],
)
def test_only_the_password_is_hidden(text: str, expected: str) -> None:
    assert service_errors.hide_password(text) == expected


def test_an_error_becomes_one_line_without_passwords() -> None:
    error = ValueError(f"GET http://a:{PASSWORD}@host\n  failed")
    assert service_errors.one_line(error) == "GET http://a:***@host failed"
    assert service_errors.one_line(error, 3) == "GET"


def test_the_report_of_a_retrain_says_where_the_run_is(uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    retrain._print_report(dvc_graph.Graph(tmp_path, (), (), {}), RetrainResult(run_id="r1"), 0.0)
    output = capsys.readouterr().out
    assert "run         r1 in " in output
    assert PASSWORD not in output


def test_the_last_line_of_a_retrain_that_failed(
    uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(options: Any) -> int:
        raise ConnectionError(f"API request to {uri}/api/2.0/mlflow/runs/create failed")

    monkeypatch.setattr(retrain, "_retrain", fail)
    assert retrain.main([]) == 1
    output = capsys.readouterr()
    assert "runs/create failed" in output.err
    assert PASSWORD not in output.out + output.err


def test_errors_of_the_registry_name_the_store(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

    class NoVersions:
        def get_model_version(self, name: str, version: str) -> None:
            raise MlflowException(f"no such version at {uri}", error_code=RESOURCE_DOES_NOT_EXIST)

    monkeypatch.setattr(registry, "client", NoVersions)
    with pytest.raises(registry.RegistryError, match=r"://\w+:\*\*\*@\w+.* has no models:/emuedit-editor/9") as caught:
        registry.download_version("models:/emuedit-editor/9")
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("problem", ["Permission denied", "unreadable answer", "No such artifact", "gone"])
def test_errors_of_downloads_name_the_store(uri: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException

    def download(artifact_uri: str, dst_path: str) -> str:
        if problem == "gone":
            return dst_path
        raise MlflowException(f"API request to {uri}/get-artifact: {problem}")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(mlflow, "set_tracking_uri", lambda uri: None)
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", download)
    monkeypatch.setattr(service_errors, "check", lambda: None)
    is_missing = problem in ("No such artifact", "gone")
    message = r":\*\*\*@\S+( has no model at | lists )runs:/r1/e" if is_missing else r"artifact store of .*:\*\*\*@\S+ failed"
    kind = registry.RegistryError if is_missing else service_errors.ServiceError
    with pytest.raises(kind, match=message) as caught:
        registry.download_version("runs:/r1/emuedit-editor")
    assert PASSWORD not in str(caught.value)


def test_descriptions_and_warnings_of_mlflow(uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from mlflow.exceptions import MlflowException

    error = MlflowException(f"API request to endpoint {uri}/x was odd")
    assert PASSWORD not in service_errors.describe(error)
    assert "was odd" in service_errors.describe(error)
    mirror = stats._Mirror({"uid": "u", "experiment": "e", "name": "n", "params": {}}, is_enabled=True)
    mirror.waiting = [{"step": 1, "ms": 1, "metrics": {}}]

    def fail() -> None:
        raise error

    mirror._flush = fail  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING):
        mirror._try()
    assert "was odd" in caplog.text
    assert PASSWORD not in caplog.text


def test_the_doctor_hides_it(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", uri)
    for answer in (http_probe.Answer(0, error=f"nonnumeric port: {uri}"), http_probe.Answer(403), http_probe.Answer(401)):
        answers = iter((http_probe.Answer(200) if answer.status else answer, answer))
        monkeypatch.setattr(server_checks, "ask", lambda *_, answers=answers, **__: next(answers))
        findings = list(server_checks.check_mlflow())
        assert PASSWORD not in str(findings)
    monkeypatch.setattr(server_checks, "ask", lambda *_, **__: http_probe.Answer(0, error=uri))
    assert PASSWORD not in str(list(server_checks.check_prefect()))


def test_prefect_is_named_without_it(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefect_access, "_ANSWER_S", 0.1)
    with pytest.raises(prefect_access.ServerError) as caught:
        prefect_access.check_url(uri)
    assert ":***@" in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_an_account_in_the_address_reaches_the_server() -> None:
    with broken_server(200, b"{}") as url:
        answer = http_probe.ask(url.replace("//", f"//user:{PASSWORD}@"), 2.0)
    assert answer.is_success, answer.error


def test_mlflow_prints_no_link_with_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(mlflow_client.NO_LINKS_ENV, "")  # so that it is as before after the test
    monkeypatch.delenv(mlflow_client.NO_LINKS_ENV)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = b'{"run": {"info": {"run_id": "r1", "experiment_id": "1"}, "data": {}}, "run_info": {"run_id": "r1"}}'
    with broken_server(200, run) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url.replace("//", f"//user:{PASSWORD}@"))
        with contextlib.suppress(KeyError):
            mlflow_client.client().set_terminated("r1", "FINISHED")
    output = capsys.readouterr()
    assert PASSWORD not in output.out + output.err
