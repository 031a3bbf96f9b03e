"""The account with which MLflow's clients that answer requests read the model: made, rotated, and no administrator."""

import io
import os
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.server
import pytest
import yaml
from mlflow.exceptions import RestException

from tests.infra.fake_docker import FakeDocker
from tests.repository import ROOT

FOLDER = ROOT / "infra/compose"
SCRIPT = FOLDER / "create_serving_user.py"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "infra/compose.yaml").read_text())["services"]


def test_the_champion_is_no_administrator_of_mlflow() -> None:
    champion, setup = SERVICES["champion"], SERVICES["mlflow-serving-user"]
    assert "mlflow_admin_password" not in str(champion)
    assert champion["environment"]["MLFLOW_TRACKING_USERNAME"] == runpy.run_path(str(SCRIPT))["USER"]
    password = champion["environment"]["MLFLOW_TRACKING_PASSWORD_FILE"]
    assert password == setup["environment"]["MLFLOW_SERVING_PASSWORD_FILE"] == "/run/secrets/mlflow_serving_password"
    assert (ROOT / setup["command"][1]).samefile(SCRIPT)
    assert champion["depends_on"]["mlflow-serving-user"] == {"condition": "service_completed_successfully"}
    assert setup["profiles"] == champion["profiles"], "`up --wait` without the champion would wait for a service that has ended"
    assert "default_permission = READ" in (FOLDER / "basic_auth.ini").read_text()


def test_the_docs_make_the_account_of_the_pods_with_the_same_command() -> None:
    kubernetes = (ROOT / "docs/deployment.md").read_text().partition("**Kubernetes.**")[2]
    command, secret = kubernetes.index(str(SCRIPT.relative_to(ROOT))), kubernetes.index("generic serving-credentials")
    assert command < secret
    user = re.search(r"MLFLOW_TRACKING_USERNAME=(\w+)", kubernetes[secret:])
    assert user is not None
    assert user[1] == runpy.run_path(str(SCRIPT))["USER"]


class Accounts:
    """MLflow's client of accounts. `status`: the error code for an unknown user."""

    def __init__(self, users: dict[str, str], status: str = "RESOURCE_DOES_NOT_EXIST") -> None:
        self.users, self.status = users, status

    def get_user(self, name: str) -> str:
        if name not in self.users:
            raise RestException({"error_code": self.status, "message": "no such user"})
        return self.users[name]

    def create_user(self, name: str, password: str) -> None:
        assert name not in self.users
        self.users[name] = password

    def update_user_password(self, name: str, password: str) -> None:
        assert name in self.users
        self.users[name] = password


@pytest.fixture
def create(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the script with these accounts and this password."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")

    def run(accounts: Accounts, password: str) -> None:
        monkeypatch.setenv("MLFLOW_SERVING_PASSWORD", password)
        monkeypatch.setattr(mlflow.server, "get_app_client", lambda app, tracking_uri: accounts)
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return run


def test_a_second_run_sets_the_password_of_the_file(create: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    accounts = Accounts({"admin": "a"})
    for password in ("first", "second"):
        create(accounts, password)
        assert accounts.users == {"admin": "a", "serving": password}
        assert password not in capsys.readouterr().out


def test_a_refusal_ends_the_service_with_an_error(create: Callable[..., None]) -> None:
    accounts = Accounts({}, "PERMISSION_DENIED")
    with pytest.raises(RestException, match="no such user"):
        create(accounts, "first")
    with pytest.raises(SystemExit, match="want the password of the user serving"):
        create(accounts, "")
    assert not accounts.users


@pytest.mark.parametrize("is_running", [True, False])
def test_a_new_password_reaches_mlflow_and_a_champion_that_runs(tmp_path: Path, is_running: bool) -> None:
    docker = FakeDocker(tmp_path, 'case "$*" in *ps*) echo 5f1c ;; esac' if is_running else "")
    before = docker.secrets()
    process = docker.run("rotate-secrets", "mlflow_serving_password")
    assert process.returncode == 0, process.stderr
    after = docker.secrets()
    assert {name for name in after if after[name] != before.get(name)} == {"mlflow_serving_password"}
    *_, last = docker.calls
    assert last.profiles == ("serving" if is_running else ""), "its service sets the password before the champion starts"
    assert last.words == "up --detach --wait --force-recreate"


@pytest.mark.parametrize("password_of_mlflow", ["present", "new"])
def test_a_second_call_accepts_that_mlflow_has_the_new_password(password_of_mlflow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call may have failed after MLflow had it, and MLflow refuses to change a password to itself."""
    script = (FOLDER / "rotate-secrets").read_text()
    (program,) = re.findall(r'exec python -c "\n(.*?)"\'\n', script, re.DOTALL)
    passwords = {"admin": password_of_mlflow}

    class Client:
        def get_user(self, name: str) -> None:
            if os.environ["MLFLOW_TRACKING_PASSWORD"] != passwords[name]:
                raise RestException({"error_code": "UNAUTHENTICATED", "message": "no"})

        def update_user_password(self, name: str, password: str, current_password: str) -> None:
            self.get_user(name)
            assert (passwords[name], current_password) == ("present", "present")
            passwords[name] = password

    monkeypatch.setenv("MLFLOW_ADMIN_PASSWORD", "present")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")
    monkeypatch.setattr("sys.stdin", io.StringIO("new"))
    monkeypatch.setattr(mlflow.server, "get_app_client", lambda app, tracking_uri: Client())
    exec(program.replace('\\"', '"'), {})
    assert passwords == {"admin": "new"}


def test_all_random_passwords_can_be_changed() -> None:
    passwords = re.findall(r'^write (\w+) "[^"]*\$\(random', (FOLDER / "create-secrets").read_text(), re.MULTILINE)
    script = (FOLDER / "rotate-secrets").read_text()
    accepted = " | ".join(re.findall(r"^ +(\w+(?: \| \w+)+)\) ;;$", script, re.MULTILINE))
    assert set(accepted.split(" | ")) == set(passwords)
    page = (ROOT / "docs/deployment.md").read_text()
    documented = {word for line in re.findall(r"^compose/rotate-secrets (.*)$", page, re.MULTILINE) for word in line.split()}
    assert documented == set(passwords)
