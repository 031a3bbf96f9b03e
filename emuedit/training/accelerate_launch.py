"""Training in the processes of `accelerate launch`, which a config file of accelerate describes.

`run_accelerate` starts a launcher, `python -m emuedit.training.accelerate_launch launch CONFIG CALL`. That starts the training
processes, `... work CALL`, and records which of them died by SIGKILL: `accelerate launch` itself only exits with status 1.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emuedit.config import read_yaml
from emuedit.processes import die_with_parent
from emuedit.training.distributed import TrainingProcesses, death_by_signal, first_failure, record_failure

_KILLED = "killed"  # file with the local rank of a process that died by SIGKILL
_FSDP = "FSDP"
_KINDS = ("NO", "MULTI_GPU", "MULTI_CPU", _FSDP)  # accelerate's other kinds need code that `Optimization` lacks


class LaunchConfigError(ValueError):
    """Raised for a config file of accelerate that is missing, incomplete, or for another kind of training."""


@dataclass(frozen=True)
class LaunchConfig:
    """The parts of a config file of accelerate that this process must know."""

    n_processes: int
    """Number of processes on all machines together."""
    machine_rank: int
    """Rank of this machine, from 0."""
    is_sharded: bool
    """Whether they shard the weights (FSDP)."""
    use_cpu: bool

    @classmethod
    def read(cls, file: Path) -> LaunchConfig:
        """Read a config file. Raises LaunchConfigError, also for sharding other than FSDP2."""
        if not file.is_file():
            raise LaunchConfigError(f"want a config file of accelerate, got no file at {file}; see infra/accelerate/")
        values = read_yaml(file)
        n_processes = values.get("num_processes")
        if not isinstance(n_processes, int) or n_processes < 1:
            raise LaunchConfigError(
                f"want num_processes of at least 1 in {file}, got {n_processes}; set it to the number of GPUs on all machines"
            )
        kind = values.get("distributed_type")
        kind = "NO" if kind is False else kind  # YAML reads an unquoted NO as false
        if kind not in _KINDS:
            raise LaunchConfigError(f"want distributed_type {', '.join(_KINDS)} in {file}, got {kind}; see infra/accelerate/")
        if kind == _FSDP:
            _check_fsdp(values.get("fsdp_config") or {}, file)
        return cls(n_processes, int(values.get("machine_rank") or 0), kind == _FSDP, bool(values.get("use_cpu")))

    def processes(self, device: str) -> TrainingProcesses:
        """The processes of the training. `device`: the one that this process would choose."""
        return TrainingProcesses("cpu" if self.use_cpu else device, self.n_processes, self.is_sharded)


def _check_fsdp(options: Mapping[str, Any], file: Path) -> None:
    """Raise LaunchConfigError for FSDP that renames weights, so that some would have no part in clipping, EMA and state.

    options: the section fsdp_config, whose keys accelerate reads with and without the prefix fsdp_.
    """
    options = {key.removeprefix("fsdp_"): value for key, value in options.items()}
    version = options.get("version")
    if str(version) != "2":
        raise LaunchConfigError(
            f"want fsdp_version 2 below fsdp_config in {file}, got {version} (accelerate's default is 1, which renames weights); "
            f"run `accelerate to-fsdp2 --config_file {file} --overwrite`, or copy infra/accelerate/fsdp.yaml"
        )
    if str(options.get("activation_checkpointing", False)).lower() != "false":
        raise LaunchConfigError(
            f"want fsdp_activation_checkpointing false in {file}, got {options['activation_checkpointing']}, which renames "
            "weights; set it to false, and train.gradient_checkpointing to true"
        )
    if str(options.get("offload_params", False)).lower() != "false":
        raise LaunchConfigError(
            f"want fsdp_offload_params false in {file}, got {options['offload_params']}: the held-out loss and previews would "
            "run on the CPU; set it to false"
        )


def run_accelerate(config: Path, work: Callable[..., object], *args: Any) -> None:
    """Run work(*args) in the processes of `accelerate launch` with a config file, and wait.

    If one fails or dies, ends all and raises DistributedError.
    """
    with tempfile.TemporaryDirectory() as folder:
        call = Path(folder, "call")
        call.write_bytes(pickle.dumps((work, args)))
        command = [sys.executable, "-m", __name__, "launch", str(config), str(call)]
        child = subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent)  # noqa: S603
        try:
            status = child.wait()
        finally:
            if child.poll() is None:  # this process was interrupted
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        if status:
            killed = Path(folder, _KILLED)
            if killed.exists():  # the other processes failed by lost connections
                raise death_by_signal(int(killed.read_text()), signal.SIGKILL)
            raise first_failure(Path(folder), f"`accelerate launch` ended with exit status {status}")


def _launch(config: str, call: Path) -> None:
    """Run `accelerate launch`; if it fails, record the process that died by SIGKILL."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    arguments = ["--config_file", config, "-m", "emuedit.training.accelerate_launch", "work", str(call)]
    try:
        launch_command(launch_command_parser().parse_args(arguments))
    except (ChildFailedError, subprocess.CalledProcessError) as error:
        if isinstance(error, ChildFailedError):
            statuses = {failure.local_rank: failure.exitcode for failure in error.failures.values()}
        else:
            statuses = {0: error.returncode}  # of a single process
        killed = [rank for rank, status in statuses.items() if status == -signal.SIGKILL]
        if killed:  # the launcher ends the others with SIGTERM
            call.with_name(_KILLED).write_text(str(killed[0]))
        sys.exit(1)  # the training process has printed its traceback


def _work(call: Path) -> None:
    """One training process; the launcher loses its traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    work, args = pickle.loads(call.read_bytes())  # noqa: S301  written by run_accelerate
    try:
        work(*args)
    except Exception as error:
        record_failure(call.parent, error)
        raise


if __name__ == "__main__":
    if sys.argv[1] == "launch":
        _launch(sys.argv[2], Path(sys.argv[3]))
    else:
        _work(Path(sys.argv[2]))
