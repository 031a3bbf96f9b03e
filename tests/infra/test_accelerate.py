"""infra/accelerate, as `accelerate launch` reads it. Nothing is launched: both files want several GPUs."""

from pathlib import Path
from typing import Any

import pytest
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.fsdp import CPUOffloadPolicy

from emuedit.training.memory.memory_estimator import FSDP_UNITS
from tests.repository import ROOT

FOLDER = ROOT / "infra/accelerate"
KINDS = {"ddp": DistributedType.MULTI_GPU, "fsdp": DistributedType.FSDP}


def launch_options(path: Path) -> tuple[Any, set[str]]:
    """Options of `accelerate launch` with a config file, and the names of all options that it has."""
    options = launch.launch_command_parser().parse_args(["--config_file", str(path), "-m", "module"])
    names = set(vars(options))
    return launch._validate_launch_command(options)[0], names


def test_each_file_has_a_kind() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_the_launcher_takes_every_key(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    config = load_config_from_file(
        str(path)
    )  # refuses unknown keys, except below fsdp_config, of which the launcher ignores them
    assert config.distributed_type is KINDS[name]
    assert (config.num_machines, config.machine_rank) == (1, 0)
    assert config.mixed_precision is None, "want the number format from params.yaml alone"
    options, names = launch_options(path)
    assert set(config.fsdp_config) <= names
    assert (options.multi_gpu, options.use_fsdp) == (name == "ddp", name == "fsdp")
    assert options.num_processes == config.num_processes > 1
    assert not options.use_cpu


def test_processes_shard_the_layers_that_the_memory_estimate_assumes(monkeypatch: pytest.MonkeyPatch) -> None:
    options, _ = launch_options(FOLDER / "fsdp.yaml")
    for key, value in prepare_multi_gpu_env(options).items():
        if key.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert tuple(plugin.transformer_cls_names_to_wrap or ()) == FSDP_UNITS
    assert not plugin.activation_checkpointing, "want `train.gradient_checkpointing` to decide"
    assert not isinstance(plugin.cpu_offload, CPUOffloadPolicy), "want weights on the GPU, as the memory estimate does"
    assert str(plugin.state_dict_type).endswith("SHARDED_STATE_DICT")
