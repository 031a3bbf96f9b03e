"""The account with which MLflow's clients that answer requests read the model: made, rotated, and no administrator."""

import os
import re
import runpy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.server
import pytest
import yaml
from mlflow.exceptions import RestException

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
    for script in ("create-secrets", "rotate-secrets"):
        shutil.copy(FOLDER / script, tmp_path)
    docker = tmp_path / "bin/docker"
    docker.parent.mkdir()
    answer = "echo 5f1c" if is_running else ":"
    docker.write_text(f'#!/bin/sh\necho "$COMPOSE_PROFILES:$*" >> {tmp_path}/calls\ncase "$*" in *ps*) {answer} ;; esac\n')
    docker.chmod(0o755)
    subprocess.run([tmp_path / "create-secrets"], check=True, capture_output=True)
    before = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    environment = {"PATH": f"{docker.parent}:{os.environ['PATH']}", "COMPOSE_PROFILES": ""}
    subprocess.run([tmp_path / "rotate-secrets", "mlflow_serving_password"], env=environment, check=True, capture_output=True)
    after = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {"mlflow_serving_password"}
    *_, last = (tmp_path / "calls").read_text().splitlines()
    profile, _, words = last.partition(":")
    assert profile == ("serving" if is_running else ""), "its service sets the password in MLflow before the champion starts"
    assert words.endswith("up --detach --wait --force-recreate")


def test_all_random_passwords_can_be_changed() -> None:
    passwords = re.findall(r'^write (\w+) "[^"]*\$\(random', (FOLDER / "create-secrets").read_text(), re.MULTILINE)
    script = (FOLDER / "rotate-secrets").read_text()
    (accepted,) = re.findall(r"^ +(\w+(?: \| \w+)+)\) ;;$", script, re.MULTILINE)
    assert set(accepted.split(" | ")) == set(passwords)
    page = (ROOT / "docs/deployment.md").read_text()
    documented = {
        word for line in re.findall(r"^infra/compose/rotate-secrets (.*)$", page, re.MULTILINE) for word in line.split()
    }
    assert documented == set(passwords)
