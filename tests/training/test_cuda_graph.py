from pathlib import Path

import pytest
import torch

from emuedit.training.distributed import open_accelerator
from emuedit.training.latent_cache import LatentCache
from emuedit.training.loop import TrainLoop
from emuedit.training.training_error import TrainingError
from tests.training.tiny_training import SETTINGS, make_editor

GRAPH = SETTINGS.model_copy(update={"cuda_graph": True, "steps": 8})


def train_on(device: str, cache_folder: Path, scratch: Path, cuda_graph: bool) -> dict[str, torch.Tensor]:
    scratch.mkdir()
    settings = GRAPH.model_copy(update={"cuda_graph": cuda_graph})
    editor = make_editor(settings)
    with open_accelerator(device, settings.dtype, find_unused_parameters=True) as accelerator:
        TrainLoop(editor, LatentCache(cache_folder, settings.held_out_share), settings, scratch, accelerator).run()
    return {name: value.cpu() for name, value in editor.state_dict().items()}


def test_what_cannot_be_a_cuda_graph_is_refused_with_every_reason(cache_folder: Path, tmp_path: Path) -> None:
    settings = GRAPH.model_copy(update={"accumulation_steps": 2})
    with (
        open_accelerator("cpu") as accelerator,
        pytest.raises(TrainingError, match=r"got the device cpu, 2 accumulation steps; set it to false"),
    ):
        TrainLoop(make_editor(settings), LatentCache(cache_folder, 0.3), settings, tmp_path, accelerator)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_cuda_graph_trains_the_same_weights(cache_folder: Path, tmp_path: Path) -> None:
    graph, eager = (train_on("cuda", cache_folder, tmp_path / str(is_on), is_on) for is_on in (True, False))
    for name, value in eager.items():
        torch.testing.assert_close(graph[name], value, rtol=1e-4, atol=1e-5, msg=name)
