"""A `docker` that records how the scripts of infra/compose call it, and does what a test says instead."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.repository import ROOT

SCRIPTS = ("create-secrets", "rotate-secrets", "backup", "restore")
_DOCKER = """#!/bin/sh
shift    # compose
case "$1" in
    -f | --file | --file=*) files=$2 ;;
    *) files=$(ls compose.yaml compose.override.yaml 2> /dev/null) ;;
esac
printf '%s|%s|%s' "$(echo $files)" "$COMPOSE_PROFILES" "$*" | tr '\\n' ' ' >> "$CALLS"
echo >> "$CALLS"
"""


class Call(NamedTuple):
    """A call of `docker compose`: the files that it reads, COMPOSE_PROFILES, and its words without newlines."""

    files: list[str]
    profiles: str
    words: str


class FakeDocker:
    """A clone in `folder` with the scripts, an empty compose.yaml and secrets. `body`: shell code, with the words as "$@"."""

    def __init__(self, folder: Path, body: str = "") -> None:
        self.infra, self.bin, self._calls = folder / "clone/infra", folder / "bin", folder / "calls"
        self.secrets_folder = self.infra / "compose/secrets"
        (self.infra / "compose").mkdir(parents=True)
        (self.infra / "compose.yaml").touch()
        for name in SCRIPTS:
            shutil.copy(ROOT / "infra/compose" / name, self.infra / "compose")
        self.bin.mkdir()
        (self.bin / "docker").write_text(_DOCKER + body)
        (self.bin / "docker").chmod(0o755)
        subprocess.run([self.infra / "compose/create-secrets"], check=True, capture_output=True)

    def run(self, script: str, *words: str | Path, **variables: str | Path) -> "subprocess.CompletedProcess[str]":
        """Run a script of infra/compose from another folder, with these variables in addition."""
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        environment = {"PATH": path, "CALLS": str(self._calls), "COMPOSE_PROFILES": ""}
        environment |= {name: str(value) for name, value in variables.items()}
        command = [self.infra / "compose" / script, *words]
        return subprocess.run(command, env=environment, cwd=self.bin, capture_output=True, text=True)

    @property
    def calls(self) -> list[Call]:
        """All calls until now."""
        lines = [line.split("|", 2) for line in self._calls.read_text().splitlines()] if self._calls.exists() else []
        return [Call(files.split(), profiles, words.strip()) for files, profiles, words in lines]

    def secrets(self) -> dict[str, str]:
        """Name of each file in the folder of secrets -> its content."""
        return {path.name: path.read_text() for path in self.secrets_folder.iterdir()}
