"""Processes of `accelerate launch`: what its config file says, and how their failures are explained."""

from pathlib import Path

import pytest

from emuedit.failures import FailureKind
from emuedit.training.accelerate_launch import LaunchConfig, LaunchConfigError, run_accelerate
from emuedit.training.distributed import DistributedError, TrainingProcesses
from tests.repository import ROOT
from tests.training.light_processes import check_ranks, die_in_process, write_rank, write_rank_and_die, write_rank_and_fail
from tests.warm_server import fork_launchers


@pytest.fixture
def accelerate_config(tmp_path: Path) -> Path:
    config = tmp_path / "cpu.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_machines: 1\nnum_processes: 2\nuse_cpu: true\n"
        "machine_rank: 0\nmain_training_function: main\nsame_network: true\nrdzv_backend: static\nmain_process_port: 29533\n"
    )
    return config


@pytest.mark.slow
def test_processes_of_accelerate_launch_work_together_and_explain_their_failures(tmp_path: Path, accelerate_config: Path) -> None:
    with pytest.raises(DistributedError, match=r"^a training process failed: want a finite loss, got nan$"):
        run_accelerate(accelerate_config, write_rank_and_fail, str(tmp_path))
    check_ranks(tmp_path)


@pytest.mark.slow
def test_a_process_of_accelerate_launch_that_is_killed_counts_as_out_of_memory(
    tmp_path: Path, accelerate_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it is repeated with smaller passes; the other process fails by a lost connection."""
    fork_launchers(monkeypatch)
    message = r"^a training process died \(process 1 by SIGKILL, perhaps because memory ran out\)$"
    with pytest.raises(DistributedError, match=message) as error:
        run_accelerate(accelerate_config, write_rank_and_die, str(tmp_path))
    assert error.value.kind is FailureKind.MEMORY
    assert (tmp_path / "rank0").exists()


@pytest.mark.slow
def test_a_single_process_of_accelerate_launch_that_is_killed_counts_as_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_launchers(monkeypatch)
    config = tmp_path / "one.yaml"
    config.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nnum_processes: 1\nuse_cpu: true\n")
    with pytest.raises(DistributedError, match=r"died \(process 0 by SIGKILL") as error:
        run_accelerate(config, die_in_process)
    assert error.value.kind is FailureKind.MEMORY


@pytest.mark.long
def test_processes_of_accelerate_launch_end_well(tmp_path: Path, accelerate_config: Path) -> None:
    run_accelerate(accelerate_config, write_rank, str(tmp_path))
    check_ranks(tmp_path)


def test_the_config_file_says_how_many_processes_train(accelerate_config: Path, tmp_path: Path) -> None:
    assert LaunchConfig.read(accelerate_config).processes("cuda") == TrainingProcesses("cpu", 2)
    sharded = LaunchConfig.read(ROOT / "infra/accelerate/fsdp.yaml")
    assert sharded.processes("cuda") == TrainingProcesses("cuda", 8, is_sharded=True)
    assert (sharded.machine_rank, sharded.use_cpu) == (0, False)
    with pytest.raises(LaunchConfigError, match=r"want a config file of accelerate, got .*missing\.yaml.*infra/accelerate"):
        LaunchConfig.read(tmp_path / "missing.yaml")
    (tmp_path / "plain.yaml").write_text("distributed_type: NO\nnum_processes: 1\n")
    assert LaunchConfig.read(tmp_path / "plain.yaml").processes("cuda") == TrainingProcesses("cuda", 1)
    (tmp_path / "incomplete.yaml").write_text("machine_rank: 0\n")
    with pytest.raises(LaunchConfigError, match=r"want num_processes of at least 1 in .*incomplete\.yaml, got None; set it to"):
        LaunchConfig.read(tmp_path / "incomplete.yaml")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("distributed_type: FSDP", r"want fsdp_version 2 below fsdp_config in .*config\.yaml, got None .*to-fsdp2 --config_file"),
        ("distributed_type: FSDP\nfsdp_config: {fsdp_version: 1, fsdp_use_orig_params: true}", "want fsdp_version 2 .*, got 1 "),
        (
            "distributed_type: FSDP\nfsdp_config: {fsdp_version: 2, fsdp_activation_checkpointing: true}",
            "want fsdp_activation_checkpointing false in .*, got True.*; set it to false, and train.gradient_checkpointing",
        ),
        (
            "distributed_type: FSDP\nfsdp_config: {fsdp_version: 2, fsdp_offload_params: true}",
            "want fsdp_offload_params false in .*, got True: the held-out loss and previews would run",
        ),
        ("distributed_type: DEEPSPEED", "want distributed_type NO, MULTI_GPU, MULTI_CPU, FSDP in .*, got DEEPSPEED; see infra"),
        ("distributed_type: fsdp", "want distributed_type NO, .*, got fsdp"),
        ("use_cpu: true", "want distributed_type NO, .*, got None"),
    ],
)
def test_a_kind_of_training_that_would_go_wrong_is_refused(lines: str, message: str, tmp_path: Path) -> None:
    """FSDP1 is accelerate's default; it renames weights, as its activation checkpointing does."""
    (tmp_path / "config.yaml").write_text(f"num_processes: 2\n{lines}\n")
    with pytest.raises(LaunchConfigError, match=message):
        LaunchConfig.read(tmp_path / "config.yaml")


def test_keys_of_fsdp_may_lack_their_prefix(tmp_path: Path) -> None:
    """As accelerate reads them."""
    (tmp_path / "config.yaml").write_text("num_processes: 2\ndistributed_type: FSDP\nfsdp_config: {version: '2'}\n")
    assert LaunchConfig.read(tmp_path / "config.yaml").is_sharded
