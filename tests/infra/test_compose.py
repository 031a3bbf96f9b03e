"""infra/compose.yaml: valid, closed to the outside, without secrets, and with the settings that the servers need."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from emuedit.process_identity import WORKSPACE_ENV
from tests.repository import ROOT

INFRA = ROOT / "infra"
COMPOSE: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ONE_SHOT = {"bucket-init", "mlflow-upgrade", "mlflow-serving-user", "prefect-setup"}
DOCKERFILES = {name: f"infra/docker/{name}.Dockerfile" for name in ("serve", "train")}
SECRET_WORDS = (
    "PASSWORD", "SECRET", "ACCESS_KEY", "API_KEY", "TOKEN", "AUTH_STRING", "CONNECTION_URL", "STORE_URI", "WEBHOOK",
)  # fmt: skip
each_service = pytest.mark.parametrize("name", SERVICES)


@pytest.mark.slow
def test_the_file_follows_the_specification_of_compose() -> None:
    checker = [
        Path(sys.executable).parent / "check-jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        INFRA / "compose.yaml",
    ]
    process = subprocess.run(checker, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr


@each_service
def test_services_are_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert service.get("network_mode") != "host"
    user = str(service.get("user", "10001"))  # that of our images
    assert user.split(":")[0] not in {"0", "root"}


@each_service
def test_logs_are_rotated(name: str) -> None:
    """Docker's json-file keeps all of a log otherwise, until the disk is full."""
    logging = SERVICES[name]["logging"]
    assert (logging["driver"], set(logging["options"])) == ("json-file", {"max-size", "max-file"})
    assert re.fullmatch(r"\d+m", logging["options"]["max-size"])
    assert int(logging["options"]["max-file"]) > 1, "want more than one: a single file is emptied when it is full"


@each_service
def test_services_have_a_health_check_and_wait_for_healthy_ones(name: str) -> None:
    assert SERVICES[name]["healthcheck"].get("disable") is (True if name in ONE_SHOT else None)
    for dependency, condition in SERVICES[name].get("depends_on", {}).items():
        want = "service_completed_successfully" if dependency in ONE_SHOT else "service_healthy"
        assert condition["condition"] == want


@each_service
def test_images_are_pinned_and_ports_are_of_this_machine_only(name: str) -> None:
    image = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", SERVICES[name]["image"])
    tag = image.split("@")[0].rpartition(":")[2]
    assert re.match(r"\d", tag), f"want a version, got {image}"
    assert all(str(port).startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@each_service
def test_secrets_are_files_that_the_service_has(name: str) -> None:
    service = SERVICES[name]
    environment = {key: str(value) for key, value in service.get("environment", {}).items()}
    for key, value in environment.items():
        is_secret = any(word in key for word in SECRET_WORDS)
        assert not is_secret or (key.endswith("_FILE") and value.startswith("/run/secrets/")), f"{key} is not read from a file"
        assert not re.search(r"://[^/]*:[^/]*@", value), f"{key} has a password"
    used = set(re.findall(r"/run/secrets/(\w+)", str([environment, service.get("command")])))
    assert used == set(service.get("secrets", []))
    assert used <= set(COMPOSE["secrets"])
    assert all(secret["file"].startswith("./compose/secrets/") for secret in COMPOSE["secrets"].values())


def test_the_worker_does_not_see_the_secrets_of_others_in_the_clone() -> None:
    with_clone = [name for name, service in SERVICES.items() if any(":/workspace" in str(v) for v in service.get("volumes", []))]
    assert with_clone == ["worker"]
    assert "/workspace/infra/compose/secrets:ro,mode=555" in SERVICES["worker"]["tmpfs"]


def test_servers_have_the_settings_that_they_are_known_to_need() -> None:
    mlflow, worker = SERVICES["mlflow"], SERVICES["worker"]
    assert mlflow["environment"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert "--workers=1" in mlflow["command"]
    assert "--app-name=basic-auth" in mlflow["command"]
    hosts = next(word for word in mlflow["command"] if word.startswith("--allowed-hosts="))
    assert "mlflow:*" in hosts, "want the name by which the other services call it"
    assert worker["environment"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert worker["environment"][WORKSPACE_ENV], "want a name that stays: the host name is another one in each container"
    assert worker["environment"]["PREFECT_API_URL"] == "http://prefect:4200/api"
    pools = {deployment["work_pool"]["name"] for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}
    assert pools == {worker["command"][worker["command"].index("--pool") + 1]}


def image_kind(service: dict[str, Any]) -> str:
    """`serve` or `train` for our images, empty for others."""
    match = re.match(r"emuedit-(serve|train):", service["image"])
    return match[1] if match else ""


OUR_SERVICES = [name for name, service in SERVICES.items() if image_kind(service)]


def test_one_service_builds_each_image_and_nobody_asks_a_registry_for_it() -> None:
    """Several builds of one tag at the same time fail: image already exists."""
    builders = [image_kind(service) for service in SERVICES.values() if "build" in service]
    assert sorted(builders) == sorted(DOCKERFILES)
    for name in OUR_SERVICES:
        service = SERVICES[name]
        assert service["pull_policy"] == "never"
        assert "build" not in service or service["build"]["dockerfile"] == DOCKERFILES[image_kind(service)]


def test_the_tables_of_mlflow_are_upgraded_before_it_starts() -> None:
    from emuedit.tracking import table_upgrade

    upgrade, mlflow = SERVICES["mlflow-upgrade"], SERVICES["mlflow"]
    assert upgrade["command"][2] == table_upgrade.__name__
    variable = f"{table_upgrade.URI_ENV}_FILE"
    assert upgrade["environment"][variable] == mlflow["environment"][variable]
    assert mlflow["depends_on"]["mlflow-upgrade"] == {"condition": "service_completed_successfully"}


def test_requests_may_end_before_the_champion_does() -> None:
    from emuedit.tracking import serve_model

    minutes, seconds = re.fullmatch(r"(\d+)m(\d+)s", SERVICES["champion"]["stop_grace_period"]).groups()  # type: ignore[union-attr]
    assert int(minutes) * 60 + int(seconds) >= serve_model.REQUEST_S + 10
    (command,) = re.findall(r"^CMD (.*)$", (ROOT / DOCKERFILES["serve"]).read_text(), re.MULTILINE)
    assert json.loads(command) == ["python", "-m", serve_model.__name__]


def test_the_champion_has_no_keys_of_the_store() -> None:
    """It gets its model from MLflow; those keys write to the bucket."""
    assert SERVICES["champion"]["secrets"] == ["mlflow_serving_password"]
    assert not [name for name in SERVICES["champion"]["environment"] if name.startswith(("AWS_", "MLFLOW_S3_", "S3_"))]


def test_only_services_with_keys_of_the_store_reach_it() -> None:
    """SeaweedFS has other ports, some without a password, with which all data can be deleted."""
    networks = {name: set(service.get("networks", ["default"])) for name, service in SERVICES.items()}
    reach_it = {name for name in SERVICES if networks[name] & networks["s3"]}
    assert reach_it == {name for name, service in SERVICES.items() if "s3_secret_key" in service.get("secrets", [])}
    assert networks["s3"] <= set(COMPOSE["networks"])
    setting = SERVICES["champion"]["environment"]["MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD"]
    assert setting == "false", "unset, MLflow's client does as the server advertises, and downloads from the store itself"


STORE_SECRETS = {
    "s3_access_key": "AWS_ACCESS_KEY_ID", "s3_secret_key": "AWS_SECRET_ACCESS_KEY",
    "s3_admin_password": "WEED_ADMIN_PASSWORD", "s3_filer_key": "WEED_JWT_FILER_SIGNING_KEY",
}  # fmt: skip
"""Secret of the store -> variable from which SeaweedFS reads it."""


def start_store(folder: Path, **secrets: str) -> "subprocess.CompletedProcess[str]":
    """Run the command of the store with these secrets and a `weed` that prints its variables and its words."""
    folder.mkdir()
    (folder / "weed").write_text('#!/bin/sh\nenv\necho "weed $*"\n')
    (folder / "weed").chmod(0o755)
    for name, content in secrets.items():
        (folder / name).write_text(content)
    (script,) = SERVICES["s3"]["command"]
    words = [*SERVICES["s3"]["entrypoint"], script.replace("$$", "$").replace("/run/secrets", str(folder))]
    environment = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(words, env=environment, capture_output=True, text=True)


def test_the_store_starts_with_all_its_keys_and_logs_to_docker(tmp_path: Path) -> None:
    keys = {name: f"value of {name}" for name in STORE_SECRETS}
    process = start_store(tmp_path / "all", **keys)
    assert process.returncode == 0, process.stderr
    *variables, words = process.stdout.splitlines()
    environment = dict(line.split("=", 1) for line in variables)
    assert {name: environment[variable] for name, variable in STORE_SECRETS.items()} == keys
    assert environment["WEED_JWT_FILER_SIGNING_READ_KEY"] == keys["s3_filer_key"], "without it, everybody can read"
    assert words == "weed -logtostderr=true mini -dir=/data -webdav=false -master.telemetry=false", (
        "want its log in that of the container, no WebDAV, and no reports to its maker"
    )
    for name in STORE_SECRETS:
        assert start_store(tmp_path / f"empty-{name}", **keys | {name: ""}).returncode != 0, name
        assert start_store(tmp_path / f"no-{name}", **{key: keys[key] for key in keys if key != name}).returncode != 0, name


@pytest.mark.parametrize("name", ["worker", "champion", "mlflow"])
def test_caches_and_temporary_files_are_on_disk(name: str) -> None:
    service = SERVICES[name]
    assert service["tmpfs"][0] == "/tmp:mode=1777,exec", "compiled kernels are loaded from there"
    (volume,) = (volume.split(":")[0] for volume in service["volumes"] if volume.endswith(":/cache"))
    assert volume in COMPOSE["volumes"]
    for variable in ("XDG_CACHE_HOME", "HF_HOME", "TMPDIR", "TRITON_CACHE_DIR"):
        assert service["environment"][variable].startswith("/cache")
    folders = re.findall(r"mkdir -p (\S+) && chmod 1777 /cache \1", (ROOT / DOCKERFILES[image_kind(service)]).read_text())
    assert folders == [service["environment"]["TMPDIR"]], "want it writable for the user of EMUEDIT_UID"
    assert service["environment"]["USER"]


WRITABLE = ("/tmp", "/workspace", "/var/lib/mlflow", "/cache")
"""Folders in which services with our images can write."""
WRITTEN_TO = ("HOME", "XDG_CACHE_HOME", "PREFECT_HOME", "DVC_SITE_CACHE_DIR")
"""Variables with the folders to which their programs write. DVC takes /var/tmp/dvc without the last one, even to read."""


def dockerfile_environment(path: Path) -> dict[str, str]:
    lines = path.read_text().replace("\\\n", " ").splitlines()
    words = [word for line in lines if line.startswith("ENV ") for word in line.split()[1:]]
    return dict(word.split("=", 1) for word in words)


@pytest.mark.parametrize("name", OUR_SERVICES)
def test_read_only_services_write_to_folders_that_can_be_written(name: str) -> None:
    service = SERVICES[name]
    environment = dockerfile_environment(ROOT / DOCKERFILES[image_kind(service)]) | service.get("environment", {})
    folders = {variable: environment.get(variable, "nowhere") for variable in WRITTEN_TO}
    if service.get("command", [])[:3] == ["prefect", "server", "start"]:
        folders["pages"] = environment.get("PREFECT_SERVER_UI_STATIC_DIRECTORY", "its package")
    assert service["read_only"] is True
    assert service["tmpfs"][0].startswith("/tmp:mode=1777")
    assert not {variable: folder for variable, folder in folders.items() if not folder.startswith(WRITABLE)}


def test_prefect_knows_the_setting_of_its_pages() -> None:
    from prefect.settings.models.server.ui import ServerUISettings

    names = [name for name in SERVICES["prefect"]["environment"] if name.startswith("PREFECT_SERVER_UI_")]
    settings = {f"PREFECT_SERVER_UI_{field}".upper() for field in ServerUISettings.model_fields}
    assert set(names) <= settings
    assert "PREFECT_SERVER_UI_STATIC_DIRECTORY" in names


def test_variables_of_the_file_are_those_of_the_example_with_equal_defaults() -> None:
    example = dict(
        line.split("=", 1) for line in (INFRA / ".env.example").read_text().splitlines() if "=" in line and line[0] != "#"
    )
    used = dict(re.findall(r"(?<!\$)\$\{(\w+):-([^}]*)\}", (INFRA / "compose.yaml").read_text()))
    assert used == example


def test_files_that_are_mounted_or_built_exist_and_secrets_are_ignored() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith("./") or (INFRA / source).exists(), f"no {source}"
        build = service.get("build")
        assert build is None or (INFRA / build["context"] / build["dockerfile"]).exists()
    for path in (
        "infra/.env",
        "infra/compose.override.yaml",
        "infra/compose/secrets/postgres_password",
        ".emuedit/postgres.password",
    ):
        assert subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT).returncode == 0, f"git would take {path}"


def test_the_script_makes_all_secrets_once(tmp_path: Path) -> None:
    script = tmp_path / "create-secrets"
    script.write_text((INFRA / "compose/create-secrets").read_text())
    subprocess.run(["sh", script], check=True, capture_output=True)
    contents = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert set(contents) == set(COMPOSE["secrets"])
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert len(contents["postgres_password"]) == 32
    assert f":{contents['postgres_password']}@postgres:5432/mlflow" in contents["mlflow_database_uri"]
    subprocess.run(["sh", script], check=True, capture_output=True)
    assert {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()} == contents


def read_secrets(folder: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    show = 'printf "%s|%s|%s" "${TOKEN-none}" "${TOKEN_FILE-none}" "${SSL_CERT_FILE-none}"'
    environment = {"PATH": os.environ["PATH"], "SECRETS_FOLDER": str(folder), **variables}
    command = ["sh", INFRA / "docker/read-secrets", "sh", "-c", show]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_entry_point_reads_secrets_from_files_and_leaves_other_files_alone(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a b'$(c)\"")
    process = read_secrets(tmp_path, TOKEN_FILE=str(tmp_path / "token"), SSL_CERT_FILE="/etc/ssl/cert.pem")
    assert process.stdout == "a b'$(c)\"|none|/etc/ssl/cert.pem"
    process = read_secrets(tmp_path, TOKEN_FILE=str(tmp_path / "missing"))
    assert process.returncode == 1
    assert "for TOKEN, got none" in process.stderr
