"""Run single stages of a checkout of the project, each measured once, in a separate workspace."""

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from emuedit import config
from emuedit.data.dependencies import PIPELINE_FILE, SUMMARY_FILE
from harness.command import environment_without_mlflow, replace_link

PACKAGES = ("emuedit", "toyworld", "flows")
DTYPE_SECTIONS = ("pairs", "train", "inversion", "evaluation")
"""Sections of `params.yaml` with a number format."""
MEASURED_FILE = "measured.json"


@dataclass(frozen=True)
class StageRunner:
    """Runs the stages of the checkout `code` by its `dvc.yaml`, in the folder `workspace`.

    The workspace has copies of `params.yaml` and `dvc.yaml` and links to the packages. Measurements are stored in
    `measured.json`; stages in it are not repeated.
    """

    code: Path
    workspace: Path

    def prepare(self, changes: Mapping[str, Any]) -> None:
        """Create the workspace. `changes`: dotted name -> value; names that are not in `params.yaml` are ignored.

        Exits with an explanation if the workspace has measurements of other params or of another checkout.
        """
        if not (self.code / PIPELINE_FILE).is_file():
            sys.exit(f"want a checkout of the project with {PIPELINE_FILE}, got {self.code}")
        link = self.workspace / PACKAGES[0]
        if self._measurements() and link.is_symlink() and link.readlink() != (self.code / PACKAGES[0]).resolve():
            sys.exit(f"{self.workspace} was measured with the code {link.readlink()}; name another --workspace, or delete it")
        text = changed_params(self.code / config.PARAMS_FILE, changes)
        self.workspace.mkdir(parents=True, exist_ok=True)
        file = self.workspace / config.PARAMS_FILE
        if self._measurements() and (not file.exists() or file.read_text(encoding="utf-8") != text):
            sys.exit(f"{self.workspace} was measured with other params; name another --workspace, or delete it")
        file.write_text(text, encoding="utf-8")
        shutil.copy2(self.code / PIPELINE_FILE, self.workspace / PIPELINE_FILE)
        for package in PACKAGES:
            if (self.code / package).is_dir():
                replace_link(self.workspace / package, self.code / package)

    @cached_property
    def stages(self) -> dict[str, dict[str, Any]]:
        """The stages of the checkout's `dvc.yaml`, in its order."""
        stages: dict[str, dict[str, Any]] = yaml.safe_load((self.code / PIPELINE_FILE).read_text(encoding="utf-8"))["stages"]
        return stages

    def measure(self, stage: str, force: bool) -> dict[str, Any]:
        """Run a stage from the start and return its measurement; without `force`, an earlier measurement is returned.

        The measurement has wall seconds, the stage's counts, and the number format that it used. Exits with an explanation if
        the stage fails.
        """
        measurements = self._measurements()
        if stage in measurements and not force:
            return measurements[stage]
        out = self.workspace / self.stages[stage]["outs"][0]
        scratch = self.workspace / "scratch"
        for folder in (out, scratch / stage, scratch / "latents", self.workspace / ".emuedit/answers"):
            shutil.rmtree(folder, ignore_errors=True)  # else an interrupted run would be resumed, or one of its parts reused
        start = time.perf_counter()
        exit_status = self._run(stage)
        seconds = time.perf_counter() - start
        if exit_status:
            sys.exit(f"stage {stage} of {self.code} failed with exit status {exit_status}; see its message above")
        summary = json.loads((out / SUMMARY_FILE).read_text(encoding="utf-8"))
        measurements[stage] = {
            "seconds": round(seconds, 2),
            "dtype": summary["params"].get("dtype"),
            "counts": {name: count for name, count in summary["counts"].items() if "." not in name},  # without counts per task
        }
        file = self.workspace / MEASURED_FILE
        file.write_text(json.dumps(measurements, indent=1) + "\n", encoding="utf-8")
        return measurements[stage]

    def _run(self, stage: str) -> int:
        """Run the stage's command with this Python; its output goes to our standard error. Returns the exit status."""
        program, *arguments = shlex.split(self.stages[stage]["cmd"])
        if program != "python":
            sys.exit(f"want a command that starts with python for stage {stage} in {self.code / PIPELINE_FILE}, got {program}")
        environment = environment_without_mlflow()
        environment.pop("PYTHONPATH", None)  # would import other code
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=self.workspace, env=environment, stdout=sys.stderr, check=False).returncode

    def _measurements(self) -> dict[str, dict[str, Any]]:
        file = self.workspace / MEASURED_FILE
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def changed_params(file: Path, changes: Mapping[str, Any]) -> str:
    """The text of `params.yaml` with other values; unchanged without changes."""
    if not changes:
        return file.read_text(encoding="utf-8")
    params: Any = config.read_yaml(file)
    for name, value in changes.items():
        *parents, last = name.split(".")
        section = params
        for parent in parents:
            section = section.get(parent, {})
        if last in section or (last == "dtype" and parents[0] in params):
            section[last] = value
    return yaml.safe_dump(params, sort_keys=False)


def dtype_changes(dtype: str | None) -> dict[str, str]:
    """The number format for every stage that has one; None: as in `params.yaml`."""
    return {} if dtype is None else {f"{section}.dtype": dtype for section in DTYPE_SECTIONS}
