"""The commands of docs/deployment.md and the pages that name it, against the files that they are for."""

import re
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.repository import ROOT

PAGE = (ROOT / "docs/deployment.md").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "infra/compose.yaml").read_text())
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "infra/README.md"]


def section(title: str) -> str:
    """The text of a section of the page, with the sections inside of it."""
    level, _, rest = re.search(rf"^(#+) ({re.escape(title)})\n(.*)", PAGE, re.MULTILINE | re.DOTALL).groups()  # type: ignore[union-attr]
    return re.split(rf"^#{{1,{len(level)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


@pytest.mark.parametrize("path", [*PAGES, ROOT / "infra/compose.yaml"], ids=lambda path: path.name)
def test_commands_for_compose_read_the_settings_of_this_machine_too(path: Path) -> None:
    """With --file, compose.override.yaml is not read, and the worker would lose its GPU."""
    assert not re.findall(r"docker compose (?:--\w+ \w+ )*(?:-f|--file)\b.*", path.read_text())


def test_settings_of_this_machine_are_for_services_that_exist() -> None:
    (block,) = re.findall(r"`infra/compose.override.yaml`:\n\n```yaml\n(.*?)```", PAGE, re.DOTALL)
    services = yaml.safe_load(block)["services"]
    assert set(services) <= set(COMPOSE["services"])
    assert services["worker"]["gpus"] == "all"


def test_an_upgrade_copies_the_databases_first_and_makes_the_champion_anew() -> None:
    text = section("Upgrade")
    order = [text.index(words) for words in ("compose/backup ", "git pull", "create-secrets", "compose build", " up --detach")]
    assert order == sorted(order)
    assert "docker compose --profile serving up " in text
    (champion,) = re.findall(r"^\| compose \|.*`docker compose (.*?)`", (ROOT / "docs/promotion.md").read_text(), re.MULTILINE)
    words = champion.split()
    assert {"up", "--force-recreate", "--no-deps", "champion"} <= set(words), "restart would keep the image"


def test_the_page_says_of_each_volume_how_it_is_kept() -> None:
    text = section("Backup and restore")
    rows = [row.split("|")[1:3] for row in text.splitlines() if row.startswith("| `")]
    kept = {volume: how.strip() for names, how in rows for volume in re.findall(r"`([a-z0-9-]+)`", names)}
    assert set(kept) == set(COMPOSE["volumes"])
    backup, restore = ((ROOT / "infra/compose" / name).read_text() for name in ("backup", "restore"))
    for service in ("postgres", "mlflow"):
        assert re.search(rf"docker compose (?:exec|run).* {service} ", backup)
        assert re.search(rf"docker compose (?:exec|run).* {service} ", restore)
    caches = {volume for volume, how in kept.items() if how.startswith("none")}
    assert not caches & {"postgres-data", "s3-data", "mlflow-accounts"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_command_has_a_password_among_its_words(path: Path) -> None:
    """All users of the machine can list them."""
    text = path.read_text().replace("\\\n", " ")
    assert not re.findall(r"--from-literal=.*(?:PASSWORD|SECRET|KEY|TOKEN).*", text)


@pytest.mark.parametrize("page", ["deployment.md", "operations.md"])
def test_automations_that_are_paused_exist(page: str) -> None:
    automations = yaml.safe_load((ROOT / "infra/prefect/automations.yaml").read_text())["automations"]
    text = (ROOT / "docs" / page).read_text()
    named = re.findall(r"prefect automation (pause|resume) ([a-z-]+)", text)
    assert {name for _, name in named} == {"crashed-without-heartbeat"} <= {entry["name"] for entry in automations}
    assert ("resume" in dict(named)) or "`prefect-setup` resumes the automation" in text
    assert "prefect-setup" in COMPOSE["services"]


@pytest.mark.slow
def test_a_paused_automation_is_resumed_when_prefect_has_forgotten_the_heartbeats_before_the_pause() -> None:
    """Earlier, it sets runs to Crashed for those; a second application of the file resumes it, so it is enabled there."""
    from prefect.cli.automation import pause, resume
    from prefect.settings import PREFECT_EVENTS_EXPIRED_BUCKET_BUFFER

    from flows.server_setup import read_automations

    by_name = {automation.name: automation for automation in read_automations(ROOT / "infra/prefect/automations.yaml")}
    automation = by_name["crashed-without-heartbeat"]
    assert automation.enabled
    (minutes,) = re.findall(r"automation resume .*# after (\d+) minutes", (ROOT / "docs/operations.md").read_text())
    assert automation.trigger.within + PREFECT_EVENTS_EXPIRED_BUCKET_BUFFER.value() < timedelta(minutes=int(minutes))  # type: ignore[union-attr]
    for command in (pause, resume):
        assert "name" in signature(command).parameters, "want them to take a name"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_prose_fits_into_120_columns(page: Path) -> None:
    in_code, wide = False, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        in_code ^= line.lstrip().startswith("```")
        if len(line) > 120 and not in_code and not line.lstrip().startswith("|"):
            wide.append(number)
    assert not wide, f"want lines of at most 120 characters, got longer ones: {wide}"
