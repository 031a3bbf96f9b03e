import argparse
import json
from pathlib import Path
from types import ModuleType

import pytest


def parse(command: ModuleType, *words: str) -> argparse.Namespace:
    """The arguments of a benchmark with some options."""
    parser = command.argument_parser("", quick="")
    command.add_workspace(parser)
    command.add_editor(parser)
    parser.add_argument("--kills", type=int, default=100)
    return parser.parse_args(words)


def test_the_last_line_is_the_result_file(command: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print("other output")
    command.write_result("bench/speed.py", {"pairs_per_second": 2.5}, parse(command))
    written = json.loads((tmp_path / "speed.json").read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == written
    assert written["pairs_per_second"] == 2.5
    assert written["quick"] is False
    assert written["arguments"] == {}


def test_quick_keeps_the_full_result(command: ModuleType, tmp_path: Path) -> None:
    command.write_result("bench/speed.py", {"pairs_per_second": 2.5}, parse(command))
    full = (tmp_path / "speed.json").read_bytes()
    command.write_result("bench/speed.py", {"pairs_per_second": 9.0}, parse(command, "--quick"))
    assert (tmp_path / "speed.json").read_bytes() == full
    assert json.loads((tmp_path / "speed.quick.json").read_text())["quick"] is True


def test_the_result_of_other_arguments_names_them_without_paths_of_the_machine(command: ModuleType, tmp_path: Path) -> None:
    words = ("--kills", "7", "--workspace", str(command.ROOT / "scratch/other"), "--editor", str(tmp_path / "editor"))
    command.write_result("bench/speed.py", {}, parse(command, *words))
    text = (tmp_path / "speed.json").read_text()
    assert json.loads(text)["arguments"] == {"editor": "editor", "kills": 7, "workspace": "scratch/other"}
    assert str(tmp_path) not in text
    same = parse(command, "--kills", "100", "--workspace", f"{command.ROOT}/bench/..")
    assert command.changed_arguments(same) == {}, "the defaults, given as options"


def test_a_measured_process_cannot_report_to_a_tracking_server(command: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://team")
    monkeypatch.setenv("KEPT", "1")
    environment = command.environment_without_mlflow()
    assert environment["KEPT"] == "1"
    assert not [name for name in environment if name.startswith("MLFLOW_")]


@pytest.mark.parametrize(("flags", "native"), [("fpu avx2", False), ("avx512f avx512_bf16", True), ("asimd bf16", True)])
def test_bfloat16_is_native_where_the_flags_say_so(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch, flags: str, native: bool
) -> None:
    monkeypatch.setattr(command, "_read_lscpu", lambda: {"Model name": "a processor", "Flags": flags})
    hardware = command.describe_hardware()
    assert hardware["bfloat16_native"] is native
    assert hardware["cpu"] == "a processor"
    assert hardware["cores"] >= 1


def test_hardware_is_described_without_lscpu(command: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.shutil, "which", lambda name: None)
    assert command.describe_hardware()["bfloat16_native"] is False


def test_missing_inputs_are_named(command: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "data/pairs").mkdir(parents=True)
    (tmp_path / "data/pairs/summary.json").touch()
    command.require_outputs(tmp_path, "data/pairs")
    with pytest.raises(SystemExit, match=r"want models/editor in .*uv run retrain"):
        command.require_outputs(tmp_path, "data/pairs", "models/editor")


def test_a_link_of_an_earlier_run_is_replaced(command: ModuleType, tmp_path: Path) -> None:
    for editor in ("first", "second"):
        (tmp_path / editor).mkdir()
        command.replace_link(tmp_path / "editor", tmp_path / editor)
        assert (tmp_path / "editor").resolve() == tmp_path / editor
    (tmp_path / "second").rmdir()
    (tmp_path / "third").mkdir()
    command.replace_link(tmp_path / "editor", tmp_path / "third")
    assert (tmp_path / "editor").resolve() == tmp_path / "third", "also one that leads nowhere"
