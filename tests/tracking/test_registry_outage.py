"""An outage during a download is an outage: neither "no such model" nor a champion with unreadable files."""

from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, RESOURCE_DOES_NOT_EXIST

from emuedit.promotion import comparison, promote
from emuedit.tracking import registry, service_errors
from emuedit.tracking.registry import ModelVersion, RegistryError
from emuedit.tracking.service_errors import ServiceError
from tests.doors.fake_servers import broken_server

URI = "models:/emuedit-editor/5"


@pytest.fixture
def failing_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every request is answered with 503."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with broken_server(503) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        yield


@pytest.fixture
def known_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry answers; only the download may fail."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "_find_model", lambda uri: registry._ModelSource(uri, "key", {}))


def compare() -> None:
    promote.compare_with_champion(Path("models"), "new", ModelVersion(5, "run"), Path.cwd())


CALLS: list[Callable[[], object]] = [
    lambda: registry.download_version(URI),
    lambda: registry.download_version("models:/emuedit-editor@champion"),
    lambda: registry.download_version("runs:/1234/emuedit-editor"),
    compare,
]


@pytest.mark.parametrize("call", CALLS, ids=["number", "alias", "run", "comparison"])
def test_a_server_that_fails_is_an_outage(
    failing_server: None, call: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(comparison, "read_conditions", lambda *arguments: None)
    monkeypatch.setattr(comparison, "check_tasks", lambda *arguments: None)
    with pytest.raises(ServiceError, match="it fails"):
        call()


def test_a_server_that_fails_after_the_version_was_read_is_an_outage(failing_server: None, known_source: None) -> None:
    with pytest.raises(ServiceError, match="it fails"):
        registry.download_version(URI)


def collected(text: str, uri: str = URI) -> MlflowException:
    """The error of MLflow for files of a folder that were not downloaded."""
    failures = f"##### File artifacts/weights #####\n{text}"
    return MlflowException(f"The following failures occurred while downloading one or more artifacts from {uri}:\n{failures}")


def client_error(code: str, text: str, operation: str = "GetObject") -> MlflowException:
    """The same for an error of an S3 store."""
    return collected(f"An error occurred ({code}) when calling the {operation} operation: {text}")


def http_error(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status} of the artifact store", response=response)


OUTAGES = [
    collected("503 Server Error: Service Unavailable for url: http://store/weights"),
    client_error("SlowDown", "Please reduce your request rate. (reached max retries: 4)"),
    client_error("403", "Forbidden", "HeadObject"),
    client_error("ExpiredToken", "The provided token has expired."),
    client_error("InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."),
    collected("Unable to locate credentials"),
    collected("401 Client Error: Unauthorized for url: http://store/weights"),
    collected("429 Client Error: Too Many Requests for url: http://store/weights"),
    collected("[Errno 28] No space left on device"),
    collected("SSL validation failed for http://store/weights [SSL: CERTIFICATE_VERIFY_FAILED]"),
    collected("Failed to resolve 'store' ([Errno -2] Name or service not known)"),
    collected("Read timed out.", "models:/emuedit-editor/404"),
    collected('Could not connect to the endpoint URL: "http://store/404/weights"'),
    MlflowException("API request failed with exception Max retries exceeded with url"),
    MlflowException("not allowed", error_code=PERMISSION_DENIED),
    ConnectionResetError("connection reset by peer"),
    http_error(502),
]
MISSING = [
    collected("No such artifact: 'artifacts/weights'"),
    collected("[Errno 2] No such file or directory: 'mlruns/1/artifacts/weights'"),
    collected("404 Client Error: NOT FOUND for url: http://store/weights"),
    collected("Read timed out.\n##### File artifacts/other #####\nNo such artifact: 'artifacts/other'"),
    client_error("404", "Not Found", "HeadObject"),
    client_error("NoSuchKey", "The specified key does not exist."),
    client_error("NoSuchBucket", "The specified bucket does not exist"),
    collected("The specified blob does not exist."),
    MlflowException("no artifact", error_code=RESOURCE_DOES_NOT_EXIST),
    FileNotFoundError("no such folder"),
    http_error(404),
]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        *((error, ServiceError, f"{URI} was not downloaded, because a download from the artifact store of") for error in OUTAGES),
        *((error, RegistryError, f"has no model at {URI}") for error in MISSING),
    ],
)
def test_failed_downloads_of_an_outage_and_of_missing_files(
    known_source: None, error: Exception, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(artifact_uri: str, dst_path: str) -> str:
        raise error

    monkeypatch.setattr(service_errors, "check", lambda: None)
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", download)
    with pytest.raises(kind, match=message):
        registry.download_version(URI)


@pytest.mark.parametrize("problem", ["[Errno 28] No space left on device", "[Errno 122] Disk quota exceeded: 'weights'"])
def test_a_model_that_does_not_fit_into_the_cache_is_downloaded_to_a_temporary_folder(
    problem: str, tmp_path: Path, known_source: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def download(artifact_uri: str, dst_path: str) -> str:
        if Path(dst_path).is_relative_to(tmp_path):
            raise collected(problem)
        (Path(dst_path) / "artifacts").mkdir()
        return dst_path

    monkeypatch.setattr(service_errors, "check", lambda: None)
    monkeypatch.setattr(registry.signed_files, "check_files", lambda *arguments: None)
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", download)
    assert registry.download_version(URI).is_dir()
    cache = tmp_path / "cache/emuedit/registered-models"
    assert capsys.readouterr().err == f"the model is not cached, because {cache} cannot be used: its disk or quota is full\n"
    assert list(cache.iterdir()) == []


def test_missing_files_count_only_if_mlflow_answers(known_source: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(artifact_uri: str, dst_path: str) -> str:
        raise FileNotFoundError("no such folder")

    def check() -> None:
        raise ServiceError("MLflow is away")

    monkeypatch.setattr(service_errors, "check", check)
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", download)
    with pytest.raises(ServiceError, match="MLflow is away"):
        registry.download_version(URI)


def test_an_error_of_another_kind_is_not_changed(known_source: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(artifact_uri: str, dst_path: str) -> str:
        raise KeyError("a fault of the code")

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", download)
    with pytest.raises(KeyError, match="a fault of the code"):
        registry.download_version(URI)
