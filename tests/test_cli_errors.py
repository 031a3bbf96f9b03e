"""Errors that need no traceback are one line with exit status 1."""

import argparse
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from emuedit import __main__ as entry_point
from emuedit import cli
from emuedit.editing import learn_command
from emuedit.editor.sampling_options import NonFiniteEditError
from emuedit.operations import server_commands
from emuedit.worlds import dataset_commands


def chain(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (NonFiniteEditError(torch.float16), 'NaN or infinity in float16; load it with dtype="bfloat16" or "float32"'),
        (NonFiniteEditError(torch.bfloat16), 'NaN or infinity in bfloat16; load it with dtype="float32"'),
        (NonFiniteEditError(torch.float32), "NaN or infinity in float32; load it again: its weights are damaged"),
        (
            chain(RuntimeError("Failed to download weights\nfor openai"), ConnectionError("no route")),
            "emuedit: Failed to download weights; a server did not answer: run the command again when it does",
        ),
        (OSError(28, "No space left on device", "out.png"), "emuedit: out.png: No space left on device"),
        (OSError(28, "No space left on device"), "emuedit: No space left on device; free some space, or write elsewhere"),
    ],
)
def test_a_known_error_is_one_line(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_with(error, monkeypatch)
    assert cli.main([]) == 1
    assert capsys.readouterr().err.endswith(f"{line}\n")


def test_output_that_nobody_reads_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`emuedit tasks list | head` ended with "a server did not answer"."""
    run_with(BrokenPipeError(32, "Broken pipe"), monkeypatch)
    assert cli.main([]) == 141
    assert capsys.readouterr().err == ""


def test_another_error_has_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    run_with(KeyError("a bug"), monkeypatch)
    with pytest.raises(KeyError, match="a bug"):
        cli.main([])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["status"], "emuedit: stopped\n"),
        (["export", "out"], "emuedit: stopped; the same command resumes\n"),
        (["import", "folder", "in", "out"], "emuedit: stopped; the same command resumes\n"),
        (
            ["learn", "in", "--name", "x"],
            "emuedit: stopped; the pack, if it was written, is complete, but its sheet and card may be",
        ),
    ],
)
def test_ctrl_c_says_what_is_left(
    words: list[str], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It said that nothing was written, also after a pack."""

    def stop(options: Any) -> int:
        raise KeyboardInterrupt

    for module, name in ((server_commands, "_status"), (dataset_commands, "_export"), (dataset_commands, "_import")):
        monkeypatch.setattr(module, name, stop)
    monkeypatch.setattr(learn_command, "_learn", stop)
    assert cli.main(words) == 130
    assert capsys.readouterr().err.startswith(line)


def test_ctrl_c_during_the_import_of_the_command_has_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> None:
            if name == "emuedit.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "emuedit.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupted, *sys.meta_path])
    monkeypatch.setattr(entry_point, "exit_process", sys.exit)
    with pytest.raises(SystemExit) as ended:
        entry_point.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "emuedit: stopped\n"


def run_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the command raise an error."""

    def run(options: Any) -> int:
        raise error

    options = argparse.Namespace(uses_registry=False, needs_registry=False, stop_note="", run=run)
    monkeypatch.setattr(cli, "_parser", lambda: SimpleNamespace(parse_args=lambda words: options))


@pytest.mark.parametrize("words", [["edit", ".", "x"], ["edit", "", "x"], ["replay", "session.json", "."]])
def test_a_folder_in_place_of_the_image_is_named(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It has no name from which to make that of the result."""
    assert cli.main(words) == 2
    assert capsys.readouterr().err == "emuedit: want an image, got .: Is a directory\n"


def test_no_option_can_be_abbreviated() -> None:
    """`rollback --t 3` and `promote 3 --f x`, which is --force, were accepted, and `edit --overw` was not."""
    parsers = [cli._parser()]
    for parser in parsers:
        assert not parser.allow_abbrev, parser.prog
        subparsers = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        parsers.extend(command for action in subparsers for command in action.choices.values())
    assert len(parsers) > 30
