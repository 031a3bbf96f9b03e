import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from emuedit.data.publish import Summary
from emuedit.stages import StageInterrupted, captions, describe, run_stage
from emuedit.stages.captions import CaptionsError, CaptionsParams
from tests.stages.workspace import ROOT

SUMMARY = Summary("captions", "key", {}, {"kept": 3}, {})


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with the project's params; afterwards signals are handled as before."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


def run_captions(monkeypatch: pytest.MonkeyPatch, result: Summary | BaseException) -> int:
    """The exit status of the stage, whose `run` gives this summary or raises this error."""

    def run(params: CaptionsParams, root: Path) -> Summary:
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr(captions, "run", run)
    return run_stage("captions")


def test_a_finished_stage_says_what_it_made(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_captions(monkeypatch, SUMMARY) == 0
    assert capsys.readouterr().err == "captions: 3 captions kept, 0 rows dropped in 0 s\n"


def test_an_error_of_the_project_is_explained_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = CaptionsError("want captions, got none")
    error.add_note("in shard-00003.parquet")
    assert run_captions(monkeypatch, error) == 1
    assert capsys.readouterr().err == "captions: want captions, got none (in shard-00003.parquet)\n"


def test_another_error_keeps_its_trace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_captions(monkeypatch, ZeroDivisionError("a bug")) == 1
    first, *_, last_of_trace, last = capsys.readouterr().err.splitlines()
    assert first.startswith("Traceback")
    assert last_of_trace == "ZeroDivisionError: a bug"
    assert last == "captions: a bug"


def test_wrong_params_are_explained_in_one_line(
    working_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (working_folder / "params.yaml").read_text().replace("n_rows: 2000", "n_rows: many")
    (working_folder / "params.yaml").write_text(text)
    assert run_captions(monkeypatch, SUMMARY) == 1
    message = capsys.readouterr().err
    assert message.startswith("captions: params.yaml, section 'captions':\n  key 'n_rows': ")
    assert "Traceback" not in message


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_stage_with_the_status_of_the_signal(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_captions(monkeypatch, StageInterrupted(number)) == 128 + number
    assert capsys.readouterr().err == f"captions: stopped by {number.name}; the same command resumes\n"


def test_signals_interrupt_the_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_captions(monkeypatch, SUMMARY) == 0
    for number in (signal.SIGTERM, signal.SIGINT):
        with pytest.raises(StageInterrupted, match=number.name):
            signal.raise_signal(number)


def test_a_count_that_is_missing_is_zero_in_the_headline() -> None:
    assert describe(SUMMARY, "{kept} kept, {dropped} dropped") == "3 kept, 0 dropped"
