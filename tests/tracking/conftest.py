import pytest

from emuedit.tracking import stats, store_address
from tests.tracking.fake_client import FakeClient


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    import mlflow.tracking

    fake = FakeClient()
    monkeypatch.setattr(mlflow.tracking, "MlflowClient", lambda tracking_uri: fake)
    monkeypatch.setattr(stats, "_MIN_INTERVAL_S", 0.0)
    monkeypatch.setenv(store_address.TRACKING_URI_ENV, "http://server.example.org")
    return fake
