"""The reference of a comparison: no champion yet is not the same as a registry that cannot be reached."""

import socket
from pathlib import Path

import pytest

from emuedit.data_checks import reference_profile
from emuedit.failures import FailureKind, kind_of
from emuedit.tracking.service_errors import ServiceError


def test_without_a_registry_there_is_no_champion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    reference = reference_profile.resolve("champion", tmp_path, "reports/validation")
    assert (reference.profile, reference.note) == (None, "no reference: no champion is registered")
    assert not (tmp_path / "mlflow.db").exists()


def test_a_registry_that_cannot_be_reached_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass without a reference would be kept by DVC."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://admin:s3cret@127.0.0.1:{port}")
    message = r"but the registry cannot be reached: MLflow at http://admin:\*\*\*@127.0.0.1:\d+: no server answers there; .*"
    with pytest.raises(ServiceError, match=rf"{message}Start MLflow and .* set validation.reference: null") as caught:
        reference_profile.resolve("champion", tmp_path, "reports/validation")
    assert "s3cret" not in str(caught.value)
    assert kind_of(caught.value) is FailureKind.NETWORK, "a retrain tries the stage again"
    assert reference_profile.resolve(None, tmp_path, "").note == "no reference: validation.reference is null"
