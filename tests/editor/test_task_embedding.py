import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from emuedit.editor.task_embedding import TaskEmbedding
from emuedit.tasks import TASKS, UnknownTaskError

ROOT = Path(__file__).parents[2]
PROGRAM = """
from emuedit.editor.edit_pipeline import EmuEditPipeline
print(*EmuEditPipeline.from_pretrained("toyworld/weights/base_editor").tasks)
"""


@pytest.fixture
def table() -> TaskEmbedding:
    torch.manual_seed(0)
    return TaskEmbedding(6, 16)


def test_rows_are_found_by_the_name_of_the_task(table: TaskEmbedding) -> None:
    assert table.names == tuple(task.name for task in TASKS)
    assert torch.equal(table.rows(["remove", "local"]), table.v[[1, 0]])


def test_rows_are_those_of_the_given_tasks_in_their_order() -> None:
    table = TaskEmbedding(6, 16, ["sketch", "local"])
    assert torch.equal(table.rows(["local", "sketch"]), table.v[[1, 0]])
    with pytest.raises(UnknownTaskError, match=r"this editor's tasks \(sketch, local\), got 'remove'"):
        table.rows(["remove"])


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


@pytest.mark.parametrize("v", [torch.full((6,), torch.nan), torch.zeros(5)])
def test_a_row_must_be_finite_and_of_the_width_of_the_others(v: torch.Tensor, table: TaskEmbedding) -> None:
    with pytest.raises(ValueError, match=r"finite task embedding \[6\]"):
        table.add("inpaint", v)


def test_a_saved_task_embedding_is_loaded_with_its_added_rows(tmp_path: Path) -> None:
    table = TaskEmbedding(6, 16, ["local", "remove"], weights="fingerprint")
    table.add("contour", torch.arange(6.0))
    table.save_pretrained(tmp_path)
    state = torch.get_rng_state()
    loaded = TaskEmbedding.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), state), "loading must not draw random numbers"
    assert (loaded.names, loaded.n_trained, loaded.fingerprint) == (("local", "remove", "contour"), 2, "fingerprint")
    assert torch.equal(loaded.v, table.v)
    assert torch.equal(loaded.token(table.v), table.token(table.v))


def test_rows_are_in_float32_whatever_the_network_is_loaded_in(table: TaskEmbedding, tmp_path: Path) -> None:
    """Inversion learns a row in the dtype of the others."""
    table.half().save_pretrained(tmp_path)
    loaded = TaskEmbedding.from_pretrained(tmp_path, torch_dtype=torch.float16)
    assert loaded.v.dtype == loaded.to_token.weight.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_process_that_imports_only_the_pipeline_opens_an_editor() -> None:
    """diffusers loads parts only of classes whose module was imported."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-2000:]
    assert process.stdout.split()[0] == "local"
