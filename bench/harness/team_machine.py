"""A machine of a team: a home folder, clones of the project, an object store, servers, and timed commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import yaml

from emuedit import config
from emuedit.operations.storage.bucket import Bucket, RemoteLocation
from harness import command

STORE_PORT, SERVER_PORT = 6158, 9500
"""First ports of the object store and of the servers."""
TIMEOUT_S = 1800
_KEYS = {"AWS_ACCESS_KEY_ID": "emuedit-test", "AWS_SECRET_ACCESS_KEY": "emuedit-test-secret", "AWS_DEFAULT_REGION": "us-east-1"}


class UnexpectedError(RuntimeError):
    """Raised for an unexpected result of a step."""


@dataclass
class Timeline:
    """The steps of a day with their outcomes and durations."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    _start: float = field(default_factory=time.monotonic)

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Context manager of a step; outcomes are appended to the yielded list. An exception is recorded and reraised."""
        began, outcome = time.monotonic(), list[str]()
        row: dict[str, Any] = {"at_s": round(began - self._start), "step": name}
        try:
            yield outcome
            row["ok"] = True
        except BaseException as error:
            row |= {"ok": False, "error": f"{type(error).__name__}: {error}"[-2000:]}
            raise
        finally:
            row |= {"seconds": round(time.monotonic() - began), "outcome": "; ".join(outcome)}
            self.steps.append(row)
            print(
                f"{row['at_s']:6} s  {row['seconds']:5} s  {'ok' if row['ok'] else 'FAILED':6}  {name}: {row['outcome']}",
                flush=True,
            )


class Machine:
    """A home folder and its environment. `path` is readable by PostgreSQL's account."""

    def __init__(self, path: Path, variables: Mapping[str, str]) -> None:
        self.path = path
        path.mkdir(parents=True)
        path.chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PREFECT_", "AWS_", "S3_"))}
        self.environment = kept | {
            "HOME": str(path), "PREFECT_HOME": str(path / "prefect"), "DVC_SITE_CACHE_DIR": str(path / "dvc"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "true",
            "GIT_AUTHOR_NAME": "team", "GIT_AUTHOR_EMAIL": "team@example.org", "GIT_COMMITTER_NAME": "team",
            "GIT_COMMITTER_EMAIL": "team@example.org", "PYTHONUNBUFFERED": "1", **variables,
        }  # fmt: skip

    def clone(self, source: Path, name: str) -> Clone:
        """A clone of a repository; commands in it run its code."""
        folder = self.path / name
        words = ["git", "clone", "-q", str(source), str(folder)]
        subprocess.run(words, check=True, env=self.environment)
        return Clone(self, folder)


class Clone:
    """A clone of the project on a machine."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self.folder = folder
        self.environment = machine.environment | {"PYTHONPATH": str(folder)}

    @contextmanager
    def started(self, *words: str | Path) -> Iterator[subprocess.Popen[str]]:
        """Context manager with a command in a separate session, which ends with the block."""
        process = subprocess.Popen(
            [str(word) for word in words],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def run(self, *words: str | Path, expect: int = 0) -> str:
        """Run a command and return its output. Raises UnexpectedError for an exit status other than `expect`."""
        with self.started(*words) as process:
            output, _ = process.communicate(timeout=TIMEOUT_S)
        if process.returncode != expect:
            raise UnexpectedError(f"{' '.join(map(str, words))} ended with {process.returncode}: {output[-3000:]}")
        return output

    def read_json(self, *words: str, expect: tuple[int, ...] = (0,)) -> Any:
        """Run a command and parse its JSON output. Raises UnexpectedError for an unexpected exit status."""
        done = subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=TIMEOUT_S)
        if done.returncode not in expect:
            raise UnexpectedError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-3000:]}")
        return json.loads(done.stdout)

    def set_params(self, changes: Mapping[str, Any], message: str) -> None:
        """Change `params.yaml`, and commit it with the lock file."""
        file = self.folder / config.PARAMS_FILE
        file.write_text(yaml.safe_dump(config.merge(config.read_yaml(file), changes), sort_keys=False), encoding="utf-8")
        self.commit(message)

    def commit(self, message: str) -> None:
        """Commit all changes, if any."""
        self.run("git", "add", "-A")
        if self.run("git", "status", "--porcelain"):
            self.run("git", "commit", "-q", "-m", message)

    def retrain(self, reason: str, *options: str, expect: int = 0) -> str:
        """Run `uv run retrain` and return its output."""
        return self.run("retrain", "--reason", reason, *options, expect=expect)

    def read_environment(self, file: Path) -> None:
        """Use the variables of a file written by `emuedit up`."""
        for line in file.read_text(encoding="utf-8").splitlines():
            name, sign, value = line.removeprefix("export ").partition("=")
            if sign:
                self.environment[name] = value.strip("'\"")


class ObjectStore:
    """Ceph's S3 gateway if installed, else moto; it can be stopped during a transfer."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.is_ceph = folder, shutil.which("radosgw") is not None
        self.name = "Ceph RGW" if self.is_ceph else "moto"
        self.url = f"http://127.0.0.1:{STORE_PORT}"
        self.variables = {**_KEYS, "S3_ENDPOINT_URL": self.url, "AWS_ENDPOINT_URL": self.url}
        if self.is_ceph:
            script = command.ROOT / "infra/s3/ceph-rgw.sh"
            subprocess.run([script, "start", folder, str(STORE_PORT)], check=True, stdout=subprocess.DEVNULL)
            self._pid = int((folder / "run/client.rgw.pid").read_text())
        else:
            self._pid = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-p", str(STORE_PORT)], stderr=subprocess.DEVNULL
            ).pid

    def n_objects(self, url: str) -> int:
        """Number of objects in `s3://bucket/prefix`."""
        access_key, secret_key, region = _KEYS.values()
        place = replace(RemoteLocation.parse(url, self.url, region), access_key=access_key, secret_key=secret_key)
        return len(Bucket(place).sizes(""))

    def stop(self) -> None:
        """Kill the gateway; moto, which has everything in memory, is only paused."""
        os.kill(self._pid, signal.SIGKILL if self.is_ceph else signal.SIGSTOP)

    def start_again(self) -> None:
        """Restart it with its content."""
        if not self.is_ceph:
            os.kill(self._pid, signal.SIGCONT)
            return
        environment = os.environ | {"CEPH_CONF": str(self.folder / "ceph.conf")}
        words = ["radosgw", "-n", "client.rgw", "--ms-mon-client-mode", "crc secure"]
        subprocess.run(words, env=environment, check=True, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(5)
        self._pid = int((self.folder / "run/client.rgw.pid").read_text())

    def end(self) -> None:
        """Stop it permanently."""
        if self.is_ceph:
            subprocess.run([command.ROOT / "infra/s3/ceph-rgw.sh", "stop", self.folder], check=False)
        else:
            os.kill(self._pid, signal.SIGKILL)


def wait_until(condition: Callable[[], object], limit_s: float, event: str, every_s: float = 1.0) -> None:
    """Poll a condition. Raises UnexpectedError after `limit_s`."""
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            raise UnexpectedError(f"want {event}, got a timeout after {limit_s:.0f} s")
        time.sleep(every_s)


def processes_of(words: Sequence[str], folder: Path) -> list[int]:
    """Ids of live processes with all these words in the command line and the working folder `folder`."""
    cwd = str(folder.resolve())
    processes = psutil.process_iter(["cmdline", "cwd"])
    here = [process for process in processes if process.info["cwd"] == cwd]
    return [process.pid for process in here if set(words) <= set(process.info["cmdline"] or ())]
