"""Errors that need no traceback are one line with exit status 1."""

import argparse
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from emuedit import cli
from emuedit.editor.sampling_options import NonFiniteEditError


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


def run_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the command raise an error."""

    def run(options: Any) -> int:
        raise error

    options = argparse.Namespace(uses_registry=False, needs_registry=False, run=run)
    monkeypatch.setattr(cli, "_parser", lambda: SimpleNamespace(parse_args=lambda words: options))


def test_no_option_can_be_abbreviated() -> None:
    """`rollback --t 3` and `promote 3 --f x`, which is --force, were accepted, and `edit --overw` was not."""
    parsers = [cli._parser()]
    for parser in parsers:
        assert not parser.allow_abbrev, parser.prog
        subparsers = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        parsers.extend(command for action in subparsers for command in action.choices.values())
    assert len(parsers) > 30
