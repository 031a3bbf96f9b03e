from pathlib import Path

import pytest
import torch

from emuedit.editor import task_embedding
from emuedit.editor.task_embedding import TaskEmbedding
from emuedit.tasks import TASKS, UnknownTaskError


@pytest.fixture
def table() -> TaskEmbedding:
    torch.manual_seed(0)
    return TaskEmbedding(6, 16)


def test_rows_are_found_by_the_name_of_the_task(table: TaskEmbedding) -> None:
    assert table.names == tuple(task.name for task in TASKS)
    assert torch.equal(table.rows(["remove", "local"]), table.v[[1, 0]])


def test_an_unknown_task_is_an_error_that_lists_the_known_ones(table: TaskEmbedding) -> None:
    with pytest.raises(UnknownTaskError, match=r"local, remove.*got 'remov'; did you mean 'remove'\?"):
        table.rows(["remov"])


def test_a_learned_task_becomes_one_more_row(table: TaskEmbedding) -> None:
    v = torch.arange(6.0)
    table.add("contour", v)
    assert table.names[-1] == "contour"
    assert torch.equal(table.rows(["contour"])[0], v)
    with pytest.raises(ValueError, match="want a new name"):
        table.add("contour", v)


def test_an_added_row_is_distinguished_from_the_trained_ones_of_an_editor_with_fewer_tasks(tmp_path: Path) -> None:
    TaskEmbedding(6, 16, ["local", "remove"]).save(tmp_path, "0", torch.float32)
    table, _ = task_embedding.load(tmp_path)
    table.add("contour", torch.zeros(6))
    assert table.names[table.n_trained :] == ("contour",)


@pytest.mark.parametrize("v", [torch.full((6,), torch.nan), torch.zeros(5)])
def test_a_row_must_be_finite_and_of_the_width_of_the_others(v: torch.Tensor, table: TaskEmbedding) -> None:
    with pytest.raises(ValueError, match=r"finite task embedding \[6\]"):
        table.add("inpaint", v)


def test_a_saved_task_embedding_is_loaded_with_its_added_rows(table: TaskEmbedding, tmp_path: Path) -> None:
    table.add("contour", torch.arange(6.0))
    table.save(tmp_path / "tasks", "fingerprint", torch.float32)
    loaded, weights = task_embedding.load(tmp_path / "tasks")
    assert (loaded.names, weights) == (table.names, "fingerprint")
    assert torch.equal(loaded.v, table.v)
    assert torch.equal(loaded.token(table.v), table.token(table.v))
