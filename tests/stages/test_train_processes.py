"""What the processes of a training, on one machine or several, do together and what one of them does alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from emuedit.stages import train
from emuedit.stages.train import PreviewParams
from tests.stages.workspace import load_params


class StubEditor:
    tasks = ("local",)

    @contextmanager
    def sampling(self) -> Iterator[str]:
        yield "sampler"


@pytest.mark.parametrize("main", [True, False])
def test_all_processes_make_a_preview_and_the_main_one_prints_it(
    main: bool, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with its own folder: they would write the same files."""

    def prepare(source: str, tasks: Any, n_edits: int, settings: Any, folder: Path) -> Any:
        def edit(sampler: str, step: int) -> dict[str, float]:
            (folder / f"preview-{step}.txt").write_text(sampler)
            return {"success.overall": 0.25}

        return edit

    monkeypatch.setattr("emuedit.config.import_function", lambda reference, name: prepare)
    params, editor = load_params(train.TrainParams, "train"), StubEditor()
    settings = PreviewParams(every_min=2.0)
    preview = train._prepare_preview(settings, params, editor, editor, tmp_path, main)  # type: ignore[arg-type]
    assert (preview.every_s, preview.show(7)) == (120.0, {"success.overall": 0.25})
    assert (tmp_path / "preview-7.txt").exists()
    assert capsys.readouterr().out == (f"train: step 7, 0.25 of the edits succeed; see {tmp_path}\n" if main else "")
