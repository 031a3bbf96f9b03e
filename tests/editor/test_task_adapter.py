from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from emuedit.editor.sampling import EditSampler
from emuedit.editor.settings import EditSettings
from emuedit.editor.task_adapter import TaskAdapter

MakeSampler = Callable[..., EditSampler]
KINDS = ("toy", "sd15", "sdxl")
ONE_STEP = EditSettings(steps=1, image_guidance_scale=1.0, guidance_scale=1.0, composite=0, change_threshold=0.0)


def random_adapter(sampler: EditSampler, layers: str = "all", seed: int = 0) -> TaskAdapter:
    """An adapter of which both halves are random, so that it has an effect."""
    random = torch.Generator().manual_seed(seed)
    adapter = TaskAdapter.untrained(sampler.net.unet, 2, layers, random)  # type: ignore[arg-type]
    return TaskAdapter({name: (a, torch.randn(b.shape, generator=random)) for name, (a, b) in adapter.layers.items()})


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(6, 4, 3, stride=2, padding=1), nn.Conv2d(6, 4, 1)])
def test_the_update_of_a_layer_is_that_of_the_sum_of_the_weights(layer: nn.Linear | nn.Conv2d) -> None:
    net = nn.ModuleDict({"layer": layer})
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, *layer.weight.shape[1:], generator=random), torch.randn(4, 3, generator=random)
    x = torch.randn(2, 6, 8, 8, generator=random) if isinstance(layer, nn.Conv2d) else torch.randn(2, 5, 6, generator=random)
    before = layer(x)
    with TaskAdapter({"layer": (a, b if isinstance(layer, nn.Linear) else b[..., None, None])}).applied(net):
        adapted = layer(x)
    assert torch.equal(layer(x), before), "it must be off after the block"
    with torch.no_grad():
        layer.weight += torch.einsum("or,r...->o...", b, a)
        torch.testing.assert_close(layer(x), adapted, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_adapter_changes_nothing_and_covers_the_layers_it_names(kind: str, make_sampler: MakeSampler) -> None:
    sampler = make_sampler(kind)
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    plain = sampler.sample(images, ["a"], ["local"], ONE_STEP).images
    untrained = TaskAdapter.untrained(sampler.net.unet, 2, "all", torch.Generator())
    sampler.add_task("new", sampler.net.table.rows(["local"])[0], untrained)
    assert torch.equal(sampler.sample(images, ["a"], ["new"], ONE_STEP).images, plain)
    layers = [name for name, layer in sampler.net.unet.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert list(untrained.layers) == layers
    attention = TaskAdapter.untrained(sampler.net.unet, 2, "attention", torch.Generator())
    assert set(attention.layers) == {name for name in layers if ".attn" in name}
    assert untrained.rank == 2


@pytest.mark.slow
def test_edits_in_other_threads_are_not_changed_by_an_adapter(make_sampler: MakeSampler) -> None:
    """A server answers several requests at once with one editor."""
    sampler = make_sampler("toy")
    sampler.add_task("new", sampler.net.table.rows(["local"])[0], random_adapter(sampler))
    images, settings = torch.rand(1, 3, 32, 32) * 2 - 1, ONE_STEP.with_changes({"steps": 8})

    def edit(task: str) -> torch.Tensor:
        return sampler.sample(images, ["a"], [task], settings).images

    alone = {task: edit(task) for task in ("local", "new")}
    assert not torch.equal(alone["local"], alone["new"])
    tasks = ["local", "new"] * 6
    with ThreadPoolExecutor(4) as pool:
        for task, edited in zip(tasks, pool.map(edit, tasks), strict=True):
            assert torch.equal(edited, alone[task])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_picture_of_a_batch_is_edited_as_if_it_were_alone(kind: str, make_sampler: MakeSampler) -> None:
    sampler = make_sampler(kind)
    row = sampler.net.table.rows(["local"])[0]
    for seed, name in enumerate(("first", "second")):
        sampler.add_task(name, row, random_adapter(sampler, seed=seed))
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    tasks, texts = ["first", "local", "second", "first"], list("abcd")
    together = sampler.sample(images, texts, tasks, ONE_STEP, [3, 4, 5, 6]).images
    for n, task in enumerate(tasks):
        alone = sampler.sample(images[n : n + 1], texts[n : n + 1], [task], ONE_STEP, [3 + n]).images
        torch.testing.assert_close(together[n : n + 1], alone, atol=1e-4, rtol=1e-4)
        without = sampler.sample(images[n : n + 1], texts[n : n + 1], ["local"], ONE_STEP, [3 + n]).images
        assert torch.equal(alone, without) == (task == "local"), "the adapter is in force for its own task alone"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_same_with_checkpointed_activations(kind: str, make_sampler: MakeSampler) -> None:
    sampler = make_sampler(kind)
    adapter = random_adapter(sampler)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            sampler.net.unet.enable_gradient_checkpointing()
        for tensor in adapter.parameters():
            tensor.requires_grad_(True).grad = None
        z = torch.randn(2, sampler.parts.channels, 8, 8, generator=torch.Generator().manual_seed(0))
        with adapter.applied(sampler.net.unet):
            text, v = sampler.parts.encode_text(["a", "b"]), sampler.net.table.rows(["local", "add"]).detach()
            sampler.net(z, torch.tensor([3, 500]), z, text, v).e.square().mean().backward()
        gradients.append([tensor.grad.clone() for tensor in adapter.parameters() if tensor.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_an_adapter_that_fails_midway_leaves_no_hook(make_sampler: MakeSampler) -> None:
    unet = make_sampler().net.unet
    layers = dict(TaskAdapter.untrained(unet, 2, "attention", torch.Generator()).layers)
    broken = TaskAdapter(layers | {"no.such.layer": next(iter(layers.values()))})
    with pytest.raises(ValueError, match=r"want a U-Net with the layer no\.such\.layer, got none"), broken.applied(unet):
        pass
    assert not any(layer._forward_hooks for layer in unet.modules())


@pytest.mark.slow
def test_tensors_make_the_same_adapter_and_half_of_a_pair_is_an_error(make_sampler: MakeSampler) -> None:
    adapter = random_adapter(make_sampler(), "attention")
    again = TaskAdapter.from_tensors(adapter.tensors())
    assert set(again.layers) == set(adapter.layers)
    assert all(
        torch.equal(x, y) for name in adapter.layers for x, y in zip(again.layers[name], adapter.layers[name], strict=True)
    )
    name = next(iter(adapter.layers))
    with pytest.raises(ValueError, match=r"want A and B for each layer of the adapter, got none at .*\.b"):
        TaskAdapter.from_tensors({key: value for key, value in adapter.tensors().items() if key != f"{name}.b"})


@pytest.mark.slow
@pytest.mark.parametrize("has_adapter", [True, False])
def test_an_editor_with_adapters_or_thresholds_is_not_saved_as_a_plain_pipeline(
    has_adapter: bool, make_sampler: MakeSampler, tmp_path: Path
) -> None:
    sampler = make_sampler()
    learned = (random_adapter(sampler), None) if has_adapter else (None, 0.2)
    sampler.add_task("new", sampler.net.table.rows(["local"])[0], *learned)
    for save in (sampler.save, sampler.parts.pipeline.save_pretrained):
        with pytest.raises(ValueError, match=r"got \['new'\]; remove them, and keep their packs next to it"):
            save(tmp_path / "editor")
    sampler.remove_task("new")
    sampler.save(tmp_path / "editor")
    assert sampler.tasks[-1] != "new"
