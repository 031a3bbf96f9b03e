"""The steps of a team's day: each runs the commands of a person or a schedule, and is checked."""

from __future__ import annotations

import json
import os
import re
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from harness.team_machine import SERVER_PORT, Clone, Machine, ObjectStore, Timeline, UnexpectedError, processes_of, wait_until

FIRST_TASKS = ["segment", "sketch"]
OTHER_TASKS = ["sketch", "background", "remove", "detect"]
"""Without `segment`, but with the three other measured tasks: better overall, and worse in one task."""
ACCEPTED = ["kept_pairs", "pairs_per_task"]
"""Checks of the data validation that such a small job cannot pass."""
SMALL_JOB: dict[str, Any] = {
    "captions": {"n_rows": 400},
    "instructions": {"tasks": FIRST_TASKS, "n_captions": 24},
    "router": {"epochs": 4, "folds": 2},
    "validation": {"sample_pairs": 32, "accept": ACCEPTED},
    "train": {"steps": 10, "batch_size": 8, "lr": 1e-5, "warmup_steps": 2},
    "inversion": {"n_examples": 4, "n_held_out": 2, "steps": 4, "adapter_rank": 2},
    "evaluation": {"tasks": ["background", "segment", "remove", "detect"], "n_edits": 16, "systems": ["emuedit"]},
}
"""The editor remains about as good as the base editor in tasks that its task predictor has: initially one of the four measured
tasks, `segment`. None of the others can succeed with the wrong task, as style can."""
SWAPPED_LLM = "bench.harness.swapped_llm:swapped_llm"
BUCKET = "s3://emuedit-day/data"
N_FILES = 60
"""Number of 4 MiB files in the interrupted push."""


class Day:
    """The team's machine with its servers, and the steps of the day."""

    def __init__(self, machine: Machine, team: Clone, store: ObjectStore, timeline: Timeline) -> None:
        self.machine, self.team, self.store, self.timeline = machine, team, store, timeline
        self._champion_commit = ""

    def bootstrap(self) -> None:
        """Servers, a bucket, the first commit."""
        with self.timeline.step("bootstrap: servers and a bucket") as outcome:
            lines = self.team.run("emuedit", "up", "--port-base", str(SERVER_PORT))
            self.team.read_environment(self.team.folder / ".emuedit/env")
            outcome.append(next(line for line in lines.splitlines() if line.startswith("database")))
            self.team.run("emuedit", "status")
            self.team.run("emuedit", "remote", "init", BUCKET, "--endpoint", self.store.url)
            report = self.team.read_json("emuedit", "remote", "check", "--json", expect=self.check_statuses)
            outcome.append(f"{self.store.name}, {len(report['checks'])} checks")
            self.team.set_params(SMALL_JOB, "A small job")

    @property
    def check_statuses(self) -> tuple[int, ...]:
        """Valid exit statuses of `remote check`, which warns about features that some versions of moto lack."""
        return (0,) if self.store.is_ceph else (0, 2)

    def end(self) -> None:
        """Stop the servers."""
        with self.timeline.step("servers down"):
            self.team.run("emuedit", "down")

    def schedule_fires(self) -> None:
        """A schedule starts the first retrain; data are checked; the editor is registered and becomes champion."""
        with self.timeline.step("a schedule fires: first retrain") as outcome:
            start = datetime.now(UTC) + timedelta(
                seconds=150
            )  # a time that has passed when the server gets it would be scheduled for tomorrow
            words = ("--interval", "86400", "--anchor-date", start.isoformat())
            self.team.run("prefect", "deployment", "schedule", "create", "retrain/weekly-retrain", *words)
            wait_until(self.versions, 1200, "the first registered version", every_s=5)
            wait_until(lambda: self.alias("champion") == 1 and not self.flow_processes(), 300, "version 1 as champion", every_s=5)
            checks = json.loads((self.team.folder / "reports/validation/report.json").read_text(encoding="utf-8"))
            outcome += [f"champion {self.success(1)}", f"data valid: {checks['verdict']}"]
            self.commit_champion("First editor")

    def lost_task(self) -> None:
        """Three tasks in place of one: stopped by the data validation; if accepted, the editor is rejected for the lost task."""
        reason = "person: three other tasks in place of segment"
        with self.timeline.step("a task is left out: stopped by the data validation") as outcome:
            self.team.set_params({"instructions": {"tasks": OTHER_TASKS}}, "Three other tasks in place of segment")
            output = self.team.retrain(reason, expect=1)
            if "missing_tasks" not in output:
                raise UnexpectedError(f"want the check missing_tasks, got {output[-1500:]}")
            outcome.append("missing_tasks")
        with self.timeline.step("accepted by a person: better overall, refused for the lost task") as outcome:
            self.team.set_params({"validation": {"accept": [*ACCEPTED, "missing_tasks", "task_drift"]}}, "Accept it")
            output = self.team.retrain(reason)
            self.expect_champion(1, refused=2)
            gate = next(line for line in output.splitlines() if line.startswith("gate")).removeprefix("gate").strip()
            check_only_lost_task(gate, "segment")
            outcome.append(gate)
            self.undo("segment again")

    def new_captions(self) -> None:
        """More captions and one more task: promoted, with the reason."""
        with self.timeline.step("new captions arrive: retrain, promoted") as outcome:
            more = {"n_captions": 32, "tasks": [*FIRST_TASKS, "background"]}
            self.team.set_params({"instructions": more}, "More captions, and background")
            self.team.retrain("data: 8 new captions", "--push")
            self.expect_champion(3)
            if "data: 8 new captions" not in (table := self.team.run("emuedit", "models")):
                raise UnexpectedError(f"want the reason of the retrain in `emuedit models`, got {table}")
            self.commit_champion("Second editor")
            outcome.append(f"champion {self.success(3)} after {self.success(1)}")

    def nothing_changed(self) -> None:
        """Nothing runs without a change."""
        with self.timeline.step("nothing changed: retrain has nothing to do"):
            output = self.team.retrain("schedule: weekly")
            if "Nothing to do" not in output:
                raise UnexpectedError(f"want nothing to do, got {output[-500:]}")

    def worse_model(self) -> None:
        """An editor trained on instructions of the wrong task is registered and rejected."""
        with self.timeline.step("a worse model (instructions of the wrong task): refused") as outcome:
            self.team.set_params({"world": {"llm": SWAPPED_LLM}}, "Another LLM")
            self.team.retrain("person: tries another LLM")
            self.expect_champion(3, refused=4)
            outcome.append(f"refused {self.success(4)}")
            self.undo("Back to the first LLM")

    def killed_worker(self) -> None:
        """The worker and its run are killed during training; the next run resumes."""
        with self.timeline.step("the worker is killed in the middle of a training: it goes on") as outcome:
            changes = {
                "instructions": {"tasks": [*FIRST_TASKS, "background", "remove"]},
                "train": {"steps": 40, "save_every_s": 1.0, "log_every_steps": 1},
            }
            self.team.set_params(changes, "One task more")
            self.team.run("prefect", "deployment", "run", "retrain/weekly-retrain", "-p", "reason=person: one task more")
            wait_until(lambda: self.steps_trained() >= 8, 900, "eight steps of the training", every_s=0.5)
            victims = processes_of(["worker"], self.team.folder) + self.flow_processes()
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
            wait_until(lambda: not processes_of(["-m", "emuedit.stages.train"], self.team.folder), 60, "the end of the stage")
            outcome.append(f"killed {len(victims)} processes at step {self.steps_trained()} of 40")
            self.team.run("emuedit", "up", "--port-base", str(SERVER_PORT))
            output = self.team.retrain("person: one task more")
            if "train: 0/40 steps" in output:
                raise UnexpectedError("want a resumed training, got one from its first step")
            newest = max(self.versions(), key=lambda row: int(row["version"]))
            if newest["version"] != 5 or newest["tags"]["gate.state"] not in ("promoted", "refused"):
                raise UnexpectedError(f"want a fifth version with a gate decision, got {newest}")
            self.team.commit("Third editor")
            outcome.append(f"{newest['tags']['gate.state']} {self.success(5)}")

    def store_stops(self) -> None:
        """The store stops during a push and returns."""
        with self.timeline.step("the store stops in the middle of a push: the next push ends it") as outcome:
            n_before = self.store.n_objects(BUCKET)
            folder = self.team.folder / "imported/pairs"  # large enough for the push to take a while
            folder.mkdir(parents=True)
            for number in range(N_FILES):
                (folder / f"{number:04}.bin").write_bytes(os.urandom(2**22))
            self.team.run("dvc", "add", "imported/pairs")
            self.team.commit("Imported pairs")
            with self.team.started("dvc", "push", "-j", "1") as push:
                wait_until(
                    lambda: self.store.n_objects(BUCKET) > n_before + N_FILES // 10, 120, "a tenth of the files", every_s=0.2
                )
                self.store.stop()
                output, _ = push.communicate(timeout=600)
            outcome.append(f"push ended with {push.returncode}")
            if push.returncode == 0:
                raise UnexpectedError(f"want a push that fails, got {output[-500:]}")
            self.store.start_again()
            self.team.run("dvc", "push")
            status = self.team.run("dvc", "status", "--cloud")
            if "in sync" not in status:
                raise UnexpectedError(f"want a cache that is in sync, got {status[-500:]}")
            outcome.append(self.team.run("emuedit", "remote", "verify", "--repair").splitlines()[-1])
            self.team.run("emuedit", "remote", "publish")

    def rollback(self) -> None:
        """One command restores the previous champion."""
        with self.timeline.step("rollback in one command") as outcome:
            now, previous = self.alias("champion"), self.alias("previous")
            self.team.run("emuedit", "rollback")
            if (self.alias("champion"), self.alias("previous")) != (previous, now):
                raise UnexpectedError(f"want {previous} in place of {now}, got {self.team.run('emuedit', 'models')}")
            outcome.append(f"champion {previous} in place of {now}")

    def second_machine(self, picture: Path) -> None:
        """Another home folder: data come from git and the remote, the champion from the registry; it edits an image."""
        with self.timeline.step("a second clone on an empty machine pulls the data and edits a picture") as outcome:
            other = Machine(self.machine.path.parent / "other", self.store.variables)
            clone = other.clone(self.team.folder, "clone")
            clone.environment["MLFLOW_TRACKING_URI"] = self.team.environment["MLFLOW_TRACKING_URI"]
            clone.run("dvc", "pull")
            status = clone.run("dvc", "status")
            if "up to date" not in status:
                raise UnexpectedError(f"want data that are up to date, got {status[-1500:]}")
            out = other.path / "edited.png"
            words = ("--model", "models:/emuedit-editor@champion", "-o", out)
            clone.run("emuedit", "edit", picture, "change the background to snow", *words)
            outcome.append(f"{out.stat().st_size} bytes")

    # Queries of the registry and the workspace

    def versions(self) -> list[dict[str, Any]]:
        """Output of `emuedit models --json`."""
        rows: list[dict[str, Any]] = self.team.read_json("emuedit", "models", "--json")
        return rows

    def alias(self, name: str) -> int | None:
        """Number of the version that has an alias."""
        return next((row["version"] for row in self.versions() if name in row["aliases"]), None)

    def success(self, version: int) -> str:
        """A version with its edit success."""
        row = next(row for row in self.versions() if row["version"] == version)
        return f"{version} ({float(row['tags']['edit_success']):.2f})"

    def expect_champion(self, version: int, refused: int | None = None) -> None:
        """Raises UnexpectedError for another champion, and if a rejected version is not the newest."""
        newest = max(row["version"] for row in self.versions())
        if self.alias("champion") != version or (refused or newest) != newest:
            table = self.team.run("emuedit", "models")
            raise UnexpectedError(f"want version {version} as champion and {refused or newest} as the newest, got {table}")

    def flow_processes(self) -> list[int]:
        """Ids of the processes in which the worker runs flows in the team's clone."""
        modules = ("prefect.engine", "prefect.flow_engine")
        return [pid for module in modules for pid in processes_of(["-m", module], self.team.folder)]

    def steps_trained(self) -> int:
        """The last logged step of the training in scratch."""
        files = sorted((self.team.folder / "scratch/train").glob("*/stats.jsonl"), key=lambda file: file.stat().st_mtime)
        rows = [json.loads(line) for line in files[-1].read_text().splitlines()] if files else []
        return max((row["step"] for row in rows if "step" in row), default=0)

    def commit_champion(self, message: str) -> None:
        """Commit the params and the lock file of the champion, to which `undo` returns."""
        self.team.commit(message)
        self._champion_commit = self.team.run("git", "rev-parse", "HEAD").strip()

    def undo(self, message: str) -> None:
        """Restore params, lock file and outputs of the champion."""
        self.team.run("git", "add", "-A")
        self.team.run("git", "commit", "-q", "-m", "What was refused", "--allow-empty")
        self.team.run("git", "checkout", self._champion_commit, "--", "params.yaml", "dvc.lock")
        self.team.commit(message)
        self.team.run("dvc", "checkout", "--force")


def check_only_lost_task(gate: str, task: str) -> None:
    """Raise UnexpectedError unless the gate's reason has a higher overall success, and only `task` dropped too far."""
    scores = re.search(r"edit success ([0-9.]+) against ([0-9.]+)", gate)
    is_better = scores is not None and float(scores[1]) > float(scores[2]) and "of the resamples" not in gate
    if not is_better or re.findall(r"edit success of (\w+) dropped", gate) != [task]:
        raise UnexpectedError(f"want a refusal for the task {task} alone of an editor that is better overall, got {gate}")
