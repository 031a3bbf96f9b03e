from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from emuedit.predictor import task_predictor
from emuedit.stages import MEMORY_ENV, router
from emuedit.stages.router import RouterError, run
from tests.stages.small_router import T5, make_params, publish_little

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_mlflow"), pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("changes", "uses_lora", "dtype"),
    [
        ({}, False, torch.float32),
        ({"lora": "on"}, True, torch.bfloat16),
        ({"lora": "on", "dtype": "float32"}, True, torch.float32),
    ],
)
def test_adapters_and_half_precision_go_together(changes: dict[str, Any], uses_lora: bool, dtype: torch.dtype) -> None:
    assert router.choose_precision(make_params(**changes), str(T5)) == (uses_lora, dtype)


def test_a_large_t5_gets_adapters_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router.classifier_adapters, "count_parameters", lambda base: 2_850_000_000)  # flan-t5-xl
    assert router.choose_precision(make_params(), "google/flan-t5-xl") == (True, torch.bfloat16)
    assert router.choose_precision(make_params(lora="off"), "google/flan-t5-xl") == (False, torch.float32)


def test_full_training_in_half_precision_is_an_error() -> None:
    with pytest.raises(RouterError, match=r"want router.lora on with router.dtype bfloat16"):
        router.choose_precision(make_params(dtype="bfloat16", lora="off"), str(T5))


def test_a_router_with_adapters_is_trained_and_saved_in_half_precision(tmp_path: Path) -> None:
    run(publish_little(tmp_path, lora="on", epochs=1), tmp_path)
    tensors = load_file(tmp_path / router.OUT / "model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}
    assert not any("lora" in name for name in tensors)
    assert task_predictor.load(str(tmp_path / router.OUT)).tasks == ("remove", "sketch")


@pytest.mark.parametrize("lora", ["off", "on"])
def test_a_router_that_ran_out_of_memory_keeps_fewer_activations_and_learns_the_same(
    lora: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params, kept_bytes = publish_little(tmp_path, lora=lora, dtype="float32", epochs=1, batch_size=8), [0]

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept_bytes[-1] += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run(params, tmp_path)
        weights = load_file(tmp_path / router.OUT / "model.safetensors")
        monkeypatch.setenv(MEMORY_ENV, "1")
        kept_bytes.append(0)
        run(params, tmp_path)
    for name, value in load_file(tmp_path / router.OUT / "model.safetensors").items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0.2 * params.lr, msg=f"{name}: more than rounding")
    assert kept_bytes[1] < 0.5 * kept_bytes[0]
    assert "router: ran out of memory" in capsys.readouterr().out
