"""Check that torch can use the NVIDIA GPUs of the machine; otherwise all stages would run on the CPU without a message."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator

from emuedit.operations.health.health_finding import Finding

_TOOL, _TOOL_S = "nvidia-smi", 20.0
_NAME = "GPU"
_CUDA_OF_DRIVER = re.compile(r"CUDA (?:\w+ )?Version\s*:\s*(\d+)\.(\d+)")


def check_gpu() -> Iterator[Finding]:
    """Every GPU that nvidia-smi lists can be used by torch."""
    if not shutil.which(_TOOL):
        yield Finding(_NAME, "pass", f"no {_TOOL} in PATH: no NVIDIA GPU is expected")
        return
    listed = _run("--query-gpu=name,driver_version", "--format=csv,noheader")
    gpus = [line.strip() for line in listed.stdout.splitlines() if line.strip()] if listed.returncode == 0 else []
    if not gpus:
        lines = (listed.stdout + listed.stderr).strip().splitlines()
        fix = "install the NVIDIA driver again, or restart the machine; start a container with `--gpus all`"
        yield Finding(_NAME, "warn", f"{_TOOL} lists none: {lines[-1] if lines else 'no output'}", fix)
        return
    yield _compare_with_torch(gpus)


def _compare_with_torch(gpus: list[str]) -> Finding:
    """Whether torch can use the listed GPUs, `name, driver version`, and if not, why."""
    import torch

    version, built_for, named = torch.__version__, torch.version.cuda, os.environ.get("CUDA_VISIBLE_DEVICES")
    listed = f"{len(gpus)} listed ({gpus[0]})"
    if torch.cuda.is_available():
        return Finding(_NAME, "pass", f"{listed}, {torch.cuda.device_count()} usable by torch {version}")
    if built_for is None:
        fix = "uv sync --reinstall-package torch: the torch in uv.lock is built for CUDA"
        return Finding(_NAME, "fail", f"{listed}, but torch {version} is built without CUDA", fix)
    if named is not None and named.strip() in ("", "-1"):
        return Finding(_NAME, "warn", f"{listed}, hidden by CUDA_VISIBLE_DEVICES={named!r}", "unset CUDA_VISIBLE_DEVICES")
    match = _CUDA_OF_DRIVER.search(_run().stdout)
    if match and int(match[1]) < int(built_for.partition(".")[0]):  # any driver of the same major version is sufficient
        detail = f"{listed}, but its driver is for CUDA {match[1]}.{match[2]}, and torch {version} is built for CUDA {built_for}"
        newer = f"install an NVIDIA driver for CUDA {built_for.partition('.')[0]}"
        older = f"uv pip install --torch-backend auto --reinstall-package torch torch=={version.partition('+')[0]}"
        return Finding(_NAME, "fail", detail, f"{newer}, or a torch for this driver: {older}")
    fix = "`python -c 'import torch; torch.cuda.init()'` prints why"
    return Finding(_NAME, "fail", f"{listed}, but torch {version}, built for CUDA {built_for}, can use none", fix)


def _run(*options: str) -> "subprocess.CompletedProcess[str]":
    """nvidia-smi with its output; a status other than 0 if it does not end."""
    try:
        return subprocess.run([_TOOL, *options], capture_output=True, text=True, timeout=_TOOL_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess([_TOOL], 1, "", f"no answer within {_TOOL_S:g} s")


CHECKS = (check_gpu,)
