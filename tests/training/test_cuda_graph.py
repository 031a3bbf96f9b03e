from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import accelerate
import pytest
import torch

from emuedit.training.batches.latent_cache import LatentCache
from emuedit.training.cuda_graph import GraphedPasses
from emuedit.training.distributed import open_accelerator
from emuedit.training.loop import TrainLoop
from emuedit.training.training_error import TrainingError
from tests.training.tiny_training import SETTINGS, make_editor

GRAPH = SETTINGS.model_copy(update={"cuda_graph": True, "steps": 8})


def train_on(device: str, cache_folder: Path, scratch: Path, cuda_graph: bool) -> dict[str, torch.Tensor]:
    scratch.mkdir()
    settings = GRAPH.model_copy(update={"cuda_graph": cuda_graph})
    editor = make_editor(settings)
    with open_accelerator(device, settings.dtype) as accelerator:
        TrainLoop(editor, LatentCache(cache_folder, settings.held_out_share), settings, scratch, accelerator).run()
    return {name: value.cpu() for name, value in editor.state_dict().items()}


@pytest.mark.slow
def test_what_cannot_be_a_cuda_graph_is_refused_with_every_reason(cache_folder: Path, tmp_path: Path) -> None:
    settings = GRAPH.model_copy(update={"accumulation_steps": 2})
    with (
        open_accelerator("cpu") as accelerator,
        pytest.raises(TrainingError, match=r"got the device cpu, 2 accumulation steps; set it to false"),
    ):
        TrainLoop(make_editor(settings), LatentCache(cache_folder, 0.3), settings, tmp_path, accelerator)


class FakeStream:
    """A stream that takes the place of the current one at once."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device

    def wait_stream(self, stream: "FakeStream") -> None:
        assert stream.device == self.device, "it would not wait for the kernels of another GPU"


def test_a_graph_is_made_on_the_gpu_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the current one, GPU 0, the graph would be empty and the gradient would stay as it is."""
    used: list[FakeStream] = []
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "current_stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext(used.append(stream)))
    run = GraphedPasses(lambda batch, draws: torch.ones(1), torch.device("cuda:1"))
    run(None, None)  # type: ignore[arg-type]
    assert [stream.device for stream in used] == [torch.device("cuda:1")]


def test_the_gpu_that_trains_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(accelerate, "Accelerator", lambda **options: SimpleNamespace(device=torch.device("cuda:1")))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext(current.append(device)))
    with open_accelerator("cuda:1"):
        assert current == [torch.device("cuda:1")]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_cuda_graph_trains_the_same_weights(cache_folder: Path, tmp_path: Path) -> None:
    graph, eager = (train_on("cuda", cache_folder, tmp_path / str(is_on), is_on) for is_on in (True, False))
    for name, value in eager.items():
        torch.testing.assert_close(graph[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second GPU")
def test_a_cuda_graph_trains_the_same_weights_on_another_gpu(cache_folder: Path, tmp_path: Path) -> None:
    graph, eager = (train_on("cuda:1", cache_folder, tmp_path / str(is_on), is_on) for is_on in (True, False))
    for name, value in eager.items():
        torch.testing.assert_close(graph[name], value, rtol=1e-4, atol=1e-5, msg=name)
