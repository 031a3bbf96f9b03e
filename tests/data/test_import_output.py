"""What a repeated import or export may delete, and which rows of an export can be trained on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emuedit.data.example_folder import read_examples
from emuedit.data.formats.pair_format import Column, FormatError, get_format
from emuedit.data.formats.pair_import import CARD, check_output_folder, import_examples
from emuedit.data.formats.row_conversion import ImportOptions, RowRejected
from emuedit.data.png import encode_png
from emuedit.data.publish import empty_folder
from emuedit.data.records import Pair
from emuedit.data.writable_folder import FolderError


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    """A folder of imported pairs."""
    for number, part in enumerate(("before", "after")):
        (tmp_path / "mine" / part).mkdir(parents=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "mine" / part / "a.png")
    import_again(tmp_path / "out")
    return tmp_path / "out"


def import_again(out: Path) -> None:
    options = ImportOptions(get_format("folder"), None, "all local", lambda texts: ["local"] * len(texts))
    import_examples(options, read_examples(out.parent / "mine", ["do it"]), out, out.parent)


@pytest.mark.slow
@pytest.mark.parametrize("name", [".git/config", "LICENSE", "raw/a.parquet"])
def test_a_repeated_import_deletes_no_file_that_it_did_not_write(imported: Path, name: str) -> None:
    import_again(imported)
    file = imported / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    with pytest.raises(FormatError, match=rf"other or edited files in .* that would be deleted: {name}; move them"):
        import_again(imported)
    assert file.read_text() == "mine"
    with pytest.raises(FormatError, match="which has other contents"):
        check_output_folder(imported, "export")


@pytest.mark.slow
def test_an_edited_card_and_links_are_not_deleted(imported: Path) -> None:
    (imported / CARD).write_text("our own description")
    for number in range(3):
        (imported / f"link{number}").symlink_to(imported.parent / "mine")
    with pytest.raises(FormatError, match=r"deleted: link0, link1, link2, card\.md \(edited\); move"):
        import_again(imported)
    for number in range(3):
        (imported / f"link{number}").unlink()
    with pytest.raises(FormatError, match=r"deleted: card\.md \(edited\); move"):
        import_again(imported)


def exported_row(**changes: Any) -> dict[str, Any]:
    """A row as `emuedit export` writes it."""
    image = {"bytes": encode_png(np.zeros((8, 8, 3), np.uint8)), "path": None}
    texts = {"original_prompt": "a dog", "edit_prompt": "make it a cat", "edited_prompt": "a cat"}
    ids = {"instruction_id": "i", "parent_ids": ["i", "c"], "pair_id": "p", "seed": 1, "model_revision": "m"}
    rest = {"mask": None, "task": "local", "recipe": json.dumps({"candidate": 0})}
    return {"original_image": image, "edited_image": image, **texts, **ids, **rest} | changes


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"parent_ids": ["i"]}, "origin_unreadable"),
        ({"parent_ids": []}, "origin_unreadable"),
        ({"parent_ids": ["i", None]}, "origin_unreadable"),
        ({"recipe": "[]"}, "origin_unreadable"),
        ({"task": None}, "origin_unreadable"),
        ({"task": "locale"}, "unknown_task"),
        ({"task": "superres"}, "unknown_task"),
    ],
)
def test_rows_that_training_cannot_use_are_dropped(changes: dict[str, Any], reason: str) -> None:
    """A row with one parent stopped the stage `train`; a misspelt task was noticed two stages later."""
    pair_format = get_format("emuedit")
    options, columns = ImportOptions(pair_format, None, "the dataset itself", None), dict[str, Column](pair_format.columns)
    assert isinstance(options.convert_row(exported_row(), columns), Pair)
    assert options.convert_row(exported_row(**changes), columns) == RowRejected(reason)


def test_a_new_disk_can_be_written_to_and_keeps_what_belongs_to_its_file_system(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    check_output_folder(tmp_path, "import")
    (tmp_path / "old").touch()
    with pytest.raises(FormatError, match="which has other contents"):
        check_output_folder(tmp_path, "import")
    empty_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lost+found"]


@pytest.mark.parametrize("place", ["/proc/none/pairs", "file/pairs"])
def test_a_folder_that_cannot_be_written_is_noticed_before_the_import(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was noticed after all images had been converted."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    for command in ("import", "export"):
        with pytest.raises(FolderError, match=r"want a folder that can be written, got .*: .*; name another"):
            check_output_folder(Path(place), command)
    check_output_folder(Path("new/pairs"), "import")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
