from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emuedit.editor import sampling
from emuedit.editor.sampling import EditSampler
from emuedit.editor.settings import EditSettings
from emuedit.models import image_tensors, objective
from emuedit.models.text_to_image import TextCondition
from emuedit.tasks import ALL_TASKS
from emuedit.training import inversion_examples, task_inversion
from emuedit.training.batches.batch import Batch
from emuedit.training.inversion_examples import encode_examples, encode_split, select_examples
from emuedit.training.loss import LossParts
from emuedit.training.task_inversion import MIN_HELD_OUT_DRAWS, InversionSettings, LearnedTask, invert, start_embeddings
from tests.editor.tiny_pipelines import D_V, is_lock_free, save_editor

SETTINGS = InversionSettings(
    task="contour", n_examples=4, n_held_out=2, steps=12, lr=0.1, batch_size=4, eval_every_steps=4
)  # fmt: skip


@pytest.fixture(scope="module")
def editor_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_editor("toy", tmp_path_factory.mktemp("editor"), ALL_TASKS[:3])  # the loss of each is computed as a start


@pytest.fixture
def editor(editor_folder: Path) -> EditSampler:
    return sampling.load(editor_folder)


@pytest.fixture
def samples(editor: EditSampler) -> Batch:
    """Six edits with random pictures."""
    random = torch.Generator().manual_seed(1)
    source, target = torch.randn(2, 6, editor.parts.channels, 8, 8, generator=random)
    instructions = [f"draw the outline {n}" for n in range(6)]
    return Batch(
        source, target, editor.parts.encode_text(instructions), editor.parts.null_text(1), torch.zeros(6, dtype=torch.long),
        tuple("abcdef"), tuple(instructions),
    )  # fmt: skip


def learn(
    editor: EditSampler, samples: Batch, held_out: slice = slice(4, 6), n_passes: int = 1, **changes: object
) -> LearnedTask:
    rows = torch.arange(6)
    settings, examples = SETTINGS.model_copy(update=changes), select_examples(samples, rows[:4])
    return invert(editor, examples, select_examples(samples, rows[held_out]), settings, n_passes=n_passes)


@pytest.mark.slow
def test_only_the_embedding_is_learned_and_the_loss_falls(editor: EditSampler, samples: Batch) -> None:
    """The loss is that of the examples themselves, because a random editor cannot generalise; at other timesteps and noise."""
    before = {name: value.clone() for name, value in editor.net.state_dict().items()}
    tasks = editor.tasks
    learned = learn(editor, samples, slice(0, 4), lr=0.3, steps=24)
    assert editor.tasks == tasks
    for name, value in editor.net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert learned.v.shape == (D_V,)
    assert not learned.v.requires_grad
    assert learned.loss < learned.loss_start
    assert not torch.equal(learned.v, start_embeddings(editor)[learned.start])


@pytest.mark.slow
def test_inversion_is_deterministic_and_depends_on_the_seed(editor: EditSampler, samples: Batch) -> None:
    first, same, other = (learn(editor, samples, slice(0, 4), lr=0.3, steps=4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.v, same.v)
    assert not torch.equal(first.v, other.v)


@pytest.mark.slow
@pytest.mark.parametrize("adapter_rank", [0, 2])
def test_smaller_passes_learn_the_same(
    adapter_rank: int, editor: EditSampler, samples: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"lr": 0.3, "steps": 4, "eval_every_steps": 2, "batch_size": 5, "adapter_rank": adapter_rank}
    at_once, loss_parts = [], task_inversion.loss_parts

    def count(*arguments: Any) -> LossParts:
        at_once.append(len(arguments[2]))
        return loss_parts(*arguments)

    unbroken = learn(editor, samples, slice(0, 4), **changes)
    monkeypatch.setattr(task_inversion, "loss_parts", count)
    in_passes = learn(editor, samples, slice(0, 4), n_passes=2, **changes)
    assert set(at_once) == {2, 3, MIN_HELD_OUT_DRAWS // 2}
    torch.testing.assert_close(in_passes.v, unbroken.v, rtol=1e-4, atol=1e-5)
    assert (in_passes.loss_start, in_passes.loss) == pytest.approx((unbroken.loss_start, unbroken.loss), rel=1e-5)


@pytest.mark.slow
def test_passes_and_batches_of_the_vae_have_a_bound_in_pixels(
    editor: EditSampler, samples: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 1024 px the examples of a folder do not fit a GPU at once."""
    height, width = (side * editor.parts.factor for side in samples.target.shape[-2:])
    monkeypatch.setattr(inversion_examples, "PIXELS_PER_PASS", 2 * height * width + 1)
    at_once, loss_parts = [], task_inversion.loss_parts
    monkeypatch.setattr(task_inversion, "loss_parts", lambda *args: (at_once.append(len(args[2])), loss_parts(*args))[1])
    learn(editor, samples, slice(0, 4), lr=0.3, steps=1, batch_size=5)
    assert set(at_once) == {1, 2}
    encoded, encode = [], editor.parts.encode
    monkeypatch.setattr(editor.parts, "encode", lambda images: (encoded.append(len(images)), encode(images))[1])
    images = np.zeros((5, height, width, 3), np.uint8)
    encode_examples(editor, images, images, ["a"] * 5)
    assert encoded == [2, 2, 1, 2, 2, 1]


@pytest.mark.slow
@pytest.mark.parametrize("flip", [True, False])
def test_examples_whose_instruction_has_no_side_are_mirrored_but_not_held_out_ones(flip: bool, editor: EditSampler) -> None:
    side = 8 * editor.parts.factor
    before, after = np.random.default_rng(0).integers(0, 256, (2, 5, side, side, 3), np.uint8)
    texts = ["draw outlines", "darken the left half", "draw outlines", "draw outlines", "trace it"]
    examples, held_out = encode_split(editor, before, after, texts, ([0, 1, 4], [2, 3]), flip)
    n_mirrored = 2 if flip else 0
    assert (
        examples.instructions
        == ("draw outlines", "darken the left half", "trace it", "draw outlines", "trace it")[: 3 + n_mirrored]
    )
    assert len(examples) == len(set(examples.ids)) == 3 + n_mirrored
    assert held_out.instructions == ("draw outlines", "draw outlines")
    for pictures, latents in ((before, examples.source), (after, examples.target)):
        expected = [pictures[0], pictures[1], pictures[4], pictures[0, :, ::-1], pictures[4, :, ::-1]][: 3 + n_mirrored]
        encoded = editor.parts.encode(image_tensors.from_uint8(np.stack(expected)))
        torch.testing.assert_close(latents, encoded)


@pytest.mark.slow
def test_an_editor_in_float16_learns_no_task(editor: EditSampler, samples: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editor, "dtype", torch.float16)
    with pytest.raises(ValueError, match="want an editor in float32 or bfloat16 to learn a task, got float16"):
        learn(editor, samples)


@pytest.mark.slow
def test_weights_in_bfloat16_edit_and_learn_as_float32_to_rounding(editor: EditSampler, samples: Batch) -> None:
    """A GPU has them so; on a CPU bfloat16 computes under autocast."""
    exact = learn(editor, samples, slice(0, 4), steps=0)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    settings = EditSettings(steps=2, guidance_scale=1.0, image_guidance_scale=1.0, composite=0, change_threshold=0.0)
    edited = editor.sample(images, ["a", "b"], [editor.tasks[0]] * 2, settings).images
    for part in (editor.net.unet, editor.parts.vae, *editor.parts.text_encoders):
        part.to(torch.bfloat16)
    half = EditSampler(editor.net, editor.parts, editor.fingerprint, torch.bfloat16)
    assert not half.autocast()._enabled
    torch.testing.assert_close(half.sample(images, ["a", "b"], [editor.tasks[0]] * 2, settings).images, edited, rtol=0, atol=0.2)
    learned = learn(half, samples, slice(0, 4), lr=0.3, steps=6, adapter_rank=2)
    assert learned.loss_start == pytest.approx(exact.loss_start, rel=0.05)
    assert learned.loss < learned.loss_start


@pytest.mark.slow
def test_learning_leaves_the_editor_as_it_was(editor: EditSampler, samples: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU in bfloat16, training uses other attention processors, and on a GPU gradient checkpointing; also if it fails."""
    half, unet = EditSampler(editor.net, editor.parts, editor.fingerprint, torch.bfloat16), editor.net.unet
    before, used = unet.attn_processors, set()
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    edited = half.sample(images, ["a"], ["local"], EditSettings(steps=1)).images
    losses = task_inversion._losses

    def record(*arguments: Any) -> Any:
        used.update(type(processor).__name__ for processor in unet.attn_processors.values())
        unet.enable_gradient_checkpointing()
        return losses(*arguments)

    monkeypatch.setattr(task_inversion, "_losses", record)
    learn(half, samples, steps=1, adapter_rank=2)
    assert used == {"ShortUnfusedAttnProcessor"}
    monkeypatch.setattr(task_inversion, "_step_losses", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        learn(half, samples, steps=1, adapter_rank=2)
    assert unet.attn_processors == before
    assert not unet.is_gradient_checkpointing
    assert torch.equal(half.sample(images, ["a"], ["local"], EditSettings(steps=1)).images, edited)


@pytest.mark.slow
def test_edits_of_other_threads_wait_until_a_task_is_learned(
    editor: EditSampler, samples: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would have the adapter that is being trained, and its hooks."""
    is_free, losses = list[bool](), task_inversion._losses

    def record(*arguments: Any) -> Any:
        is_free.append(is_lock_free(editor))
        return losses(*arguments)

    monkeypatch.setattr(task_inversion, "_losses", record)
    learn(editor, samples, steps=1, adapter_rank=2)
    assert is_free
    assert not any(is_free)
    assert is_lock_free(editor)


@pytest.mark.slow
def test_the_loss_is_weighted_by_min_snr_if_the_noise_schedule_does_not_end_in_noise(editor: EditSampler, samples: Batch) -> None:
    """Else the step with which every edit starts has no weight; a training refuses it, too."""
    with pytest.raises(ValueError, match=r"want min_snr_gamma null with the noise .* got 5.0: .*; set inversion.min_snr_gamma"):
        learn(editor, samples, steps=0, min_snr_gamma=5.0)
    editor.parts.scheduler = objective.on_same_betas(editor.parts.scheduler, (), rescale_betas_zero_snr=False)
    weighted, unlimited, plain = (learn(editor, samples, steps=0, min_snr_gamma=gamma).loss for gamma in (1e-3, 1e6, None))
    assert weighted < 0.5 * unlimited
    assert plain != unlimited


@pytest.mark.slow
def test_without_steps_the_embedding_is_the_start(editor: EditSampler, samples: Batch) -> None:
    learned = learn(editor, samples, steps=0)
    assert torch.equal(learned.v, start_embeddings(editor)[learned.start])
    assert learned.loss == learned.loss_start
    assert learned.steps == 0


@pytest.mark.slow
def test_it_starts_from_the_row_with_the_lowest_loss(
    editor: EditSampler, samples: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_starts = start_embeddings(editor)
    losses = {}
    for name, row in all_starts.items():
        monkeypatch.setattr(task_inversion, "start_embeddings", lambda _, name=name, row=row: {name: row})
        losses[name] = learn(editor, samples, steps=0).loss
    monkeypatch.setattr(task_inversion, "start_embeddings", lambda _: all_starts)
    learned = learn(editor, samples, steps=0)
    assert learned.start == min(losses, key=lambda name: losses[name])
    assert learned.loss_start == min(losses.values()) < max(losses.values())


@pytest.mark.slow
def test_a_few_held_out_edits_are_measured_at_timesteps_of_the_whole_schedule(
    editor: EditSampler, samples: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a single draw would decide at one timestep, such as 999, where the latents are pure noise."""
    measured: list[tuple[tuple[str, ...], list[int]]] = []
    loss_parts = task_inversion.loss_parts

    def record(*arguments: Any) -> LossParts:
        measured.append((arguments[2].ids, arguments[3].t.tolist()))
        return loss_parts(*arguments)

    monkeypatch.setattr(task_inversion, "loss_parts", record)
    n_timesteps = editor.parts.scheduler.config.num_train_timesteps
    for n in (1, 2, 3):
        learn(editor, samples, slice(0, n), steps=0)
        ids, timesteps = measured[-1]
        assert len({8 * t // n_timesteps for t in timesteps}) >= 7
        assert len({ids.count(name) for name in "abc"[:n]}) == 1, "all have the same weight"
        assert measured == [(ids, timesteps)] * len(start_embeddings(editor)), "the starts are compared on the same draws"
        measured.clear()


@pytest.mark.slow
def test_it_stops_when_the_held_out_loss_no_longer_falls(editor: EditSampler, samples: Batch) -> None:
    learned = learn(editor, samples, lr=100.0, steps=40, eval_every_steps=1, patience=2)
    assert learned.steps < 40
    assert learned.loss <= learned.loss_start


def test_the_starts_are_all_rows_and_their_mean(editor: EditSampler) -> None:
    starts = start_embeddings(editor)
    assert tuple(starts) == ("mean", *editor.tasks)
    torch.testing.assert_close(starts["mean"], editor.net.table.v.detach().mean(0))
    assert torch.equal(starts["remove"], editor.net.table.v[1])


def test_examples_are_selected_in_the_given_order(samples: Batch) -> None:
    pooled = torch.arange(6.0)[:, None]
    batch = Batch(**(vars(samples) | {"text": TextCondition(samples.text.hidden, pooled)}))
    selected = select_examples(batch, torch.tensor([4, 0, 4]))
    assert selected.ids == ("e", "a", "e")
    assert selected.instructions == tuple(samples.instructions[row] for row in (4, 0, 4))
    assert torch.equal(selected.source, samples.source[[4, 0, 4]])
    assert torch.equal(selected.target, samples.target[[4, 0, 4]])
    assert torch.equal(selected.text.hidden, samples.text.hidden[[4, 0, 4]])
    assert selected.text.pooled is not None
    assert selected.text.pooled.flatten().tolist() == [4.0, 0.0, 4.0]
