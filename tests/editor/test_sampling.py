from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from emuedit.core import diffusion, guidance
from emuedit.editor import multi_turn, sampling, task_pack
from emuedit.editor.sampling import Editor
from emuedit.editor.task_pack import Pack, PackError
from emuedit.editor.unet import Prediction
from emuedit.models.text_to_image import TextCondition
from emuedit.tasks import UnknownTaskError

MakeEditor = Callable[..., Editor]
SAID, TOLD = ["make it red", "add a star", "a ring"], ["local", "add", "sketch"]
KNOBS: dict[str, Any] = {"steps": 3, "s_I": 1.3, "s_T": 3.0}


def pictures(n: int, height: int, width: int) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("shape", ["toy", "sd15", "sd2", "sdxl"])
def test_guidance_is_three_terms_in_one_forward(shape: str, make_editor: MakeEditor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a sampler that asks for each of the three predictions by itself."""
    editor, images = make_editor(shape), pictures(2, 16, 16)
    got = editor.edit(images, SAID[:2], TOLD[:2], [3, 4], **KNOBS, hold=0.5, phi=0.7)
    frame, net = editor.frame, editor.net
    v, text = net.table.rows(TOLD[:2]), frame.encode_text(SAID[:2])
    c_I, null = frame.encode(images), frame.null_text(2)
    frame.scheduler.set_timesteps(3)
    z_t = frame.initial_noise([torch.Generator().manual_seed(seed) for seed in (3, 4)], (16, 16))
    with torch.no_grad():
        for t in frame.scheduler.timesteps:
            e_null, e_image = net(z_t, t, torch.zeros_like(c_I), null, v).e, net(z_t, t, c_I, null, v).e
            e_full, change = net(z_t, t, c_I, text, v)
            e = guidance.rescale(guidance.two_conditions(e_null, e_image, e_full, 1.3, 3.0), e_full, 0.7)
            alpha_bar = frame.scheduler.alphas_cumprod[t]
            e_source = diffusion.prediction_for_clean(c_I, z_t, alpha_bar, frame.scheduler.config.prediction_type)
            z_t = frame.scheduler.step(guidance.blend_with_source(e, e_source, change.sigmoid(), 0.5), t, z_t, return_dict=False)[0]
    torch.testing.assert_close(got, frame.decode(z_t), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("s_I", "s_T", "terms"), [(1.0, 1.0, 1), (1.0, 3.0, 2), (1.3, 3.0, 3), (1.3, 1.0, 3)])
def test_guidance_of_one_is_free(s_I: float, s_T: float, terms: int, make_editor: MakeEditor, monkeypatch: Any) -> None:
    editor, images = make_editor(), pictures(2, 16, 16)
    sizes: list[int] = []
    forward = editor.net.forward

    def counted(z_t: Tensor, *rest: Any) -> Prediction:
        sizes.append(len(z_t))
        return forward(z_t, *rest)

    monkeypatch.setattr(editor.net, "forward", counted)
    got = editor.edit(images, SAID[:2], TOLD[:2], [3, 4], steps=2, s_I=s_I, s_T=s_T)
    assert sizes == [2 * terms] * 2
    near = editor.edit(images, SAID[:2], TOLD[:2], [3, 4], steps=2, s_I=s_I + 1e-6, s_T=s_T + 1e-6)
    torch.testing.assert_close(got, near, rtol=0, atol=1e-3)


def test_a_sample_depends_on_its_own_inputs_alone(make_editor: MakeEditor) -> None:
    editor, images = make_editor(), pictures(3, 16, 16)
    together = editor.edit(images, SAID, TOLD, [3, 4, 5], **KNOBS)
    for i in range(3):
        alone = editor.edit(images[i : i + 1], SAID[i : i + 1], TOLD[i : i + 1], [3 + i], **KNOBS)
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-4, atol=1e-4)
    again = editor.edit(images, SAID, TOLD, [3, 4, 5], **KNOBS)
    assert torch.equal(again, together)
    for change in ({"instructions": SAID[::-1]}, {"tasks": TOLD[::-1]}, {"seeds": [6, 7, 8]}, {"images": images.flip(3)}):
        inputs: dict[str, Any] = {"images": images, "instructions": SAID, "tasks": TOLD, "seeds": [3, 4, 5]} | change
        other = editor.edit(**inputs, **KNOBS)
        assert (other - together)[0].abs().max() > 1e-3, f"{list(change)} changes nothing"


class Copying(torch.nn.Module):
    """A network that asks for the very picture it was shown: v = (sqrt(a) z_t - z) / sqrt(1 - a)."""

    def __init__(self, editor: Editor) -> None:
        super().__init__()
        self.table, self.alpha_bar = editor.net.table, editor.frame.scheduler.alphas_cumprod

    def forward(self, z_t: Tensor, t: Tensor, c_I: Tensor, c_T: TextCondition, v: Tensor) -> Prediction:
        a = self.alpha_bar[t]
        return Prediction((a.sqrt() * z_t - c_I) / (1 - a).sqrt(), torch.zeros_like(z_t[:, :1]))


class Painting(torch.nn.Module):
    """A network that wants everything of one value and says that the left half changes."""

    def __init__(self, editor: Editor, sure: float) -> None:
        super().__init__()
        self.table, self.alpha_bar, self.kind = editor.net.table, editor.frame.scheduler.alphas_cumprod, editor.frame.scheduler
        self.sure = sure

    def forward(self, z_t: Tensor, t: Tensor, c_I: Tensor, c_T: TextCondition, v: Tensor) -> Prediction:
        change = torch.full_like(z_t[:, :1], -self.sure)
        change[..., : z_t.shape[-1] // 2] = self.sure
        wanted = torch.full_like(z_t, 0.5)
        return Prediction(
            diffusion.prediction_for_clean(wanted, z_t, self.alpha_bar[t].view(1, 1, 1, 1), self.kind.config.prediction_type), change
        )


@pytest.mark.parametrize("shape", ["toy", "sd15"])
def test_what_is_seen_not_to_change_is_held(shape: str, make_editor: MakeEditor, monkeypatch: pytest.MonkeyPatch) -> None:
    """eps- and v-prediction: the left half becomes what the network wants, the right half stays the picture's latents."""
    editor, images, made = make_editor(shape), pictures(2, 16, 16), []
    decode = editor.frame.decode
    monkeypatch.setattr(editor.frame, "decode", lambda z: (made.append(z.clone()), decode(z))[1])
    monkeypatch.setattr(editor, "net", Painting(editor, sure=50.0))
    for hold in (0.0, 0.5, 1.0):
        editor.edit(images, SAID[:2], TOLD[:2], [3, 4], steps=4, s_I=1.0, s_T=1.0, hold=hold)
        z, half = made[-1], made[-1].shape[-1] // 2
        c_I = editor.frame.encode(images)
        torch.testing.assert_close(z[..., :half], torch.full_like(z[..., :half], 0.5), rtol=0, atol=0.05)
        right = torch.lerp(torch.full_like(c_I, 0.5), c_I, hold)[..., half:]
        torch.testing.assert_close(z[..., half:], right, rtol=0, atol=0.05)


@pytest.mark.parametrize("size", [(16, 16), (18, 31), (7, 40), (5, 3)])
def test_any_size_comes_back_without_a_shift(size: tuple[int, int], make_editor: MakeEditor, monkeypatch: Any) -> None:
    """A VAE of whole pixels and a network that copies: what went in comes out, pixel by pixel, at its own size."""
    editor = make_editor()
    monkeypatch.setattr(editor, "net", Copying(editor))
    factor = editor.frame.factor
    unshuffle, shuffle = torch.nn.PixelUnshuffle(factor), torch.nn.PixelShuffle(factor)
    monkeypatch.setattr(editor.frame, "encode", unshuffle)
    monkeypatch.setattr(editor.frame, "decode", shuffle)
    monkeypatch.setattr(editor.frame, "channels", 3 * factor**2)
    images = pictures(2, *size)
    got = editor.edit(images, SAID[:2], TOLD[:2], [3, 4], steps=4, s_I=1.0, s_T=1.0)
    torch.testing.assert_close(got, images, rtol=0, atol=1e-4)


def test_padding_repeats_the_edge(make_editor: MakeEditor, monkeypatch: pytest.MonkeyPatch) -> None:
    editor, seen = make_editor(), []
    encode = editor.frame.encode
    monkeypatch.setattr(editor.frame, "encode", lambda images: (seen.append(images), encode(images))[1])
    images = pictures(1, 13, 18)
    assert editor.grid == 2 * editor.frame.factor
    editor.edit(images, SAID[:1], TOLD[:1], [3], steps=1, s_I=1.0, s_T=1.0)
    whole = seen[0]
    assert whole.shape[-2:] == (16, 20)
    assert torch.equal(whole[..., :13, :18], images)
    assert torch.equal(whole[..., 13:, :18], images[..., -1:, :].expand(1, 3, 3, 18))
    assert torch.equal(whole[..., :13, 18:], images[..., -1:].expand(1, 3, 13, 2))


def test_bfloat16_is_near_float32(make_editor: MakeEditor) -> None:
    images = pictures(2, 16, 16)
    full = make_editor().edit(images, SAID[:2], TOLD[:2], [3, 4], **KNOBS)
    half = make_editor(dtype=torch.bfloat16)
    assert half.net.unet.dtype == torch.float32
    got = half.edit(images, SAID[:2], TOLD[:2], [3, 4], **KNOBS)
    assert got.dtype == torch.float32
    difference = (got - full).abs()
    assert 0 < difference.mean() < 0.05, f"mean {difference.mean():.3f}, most {difference.max():.3f}"


def test_what_it_cannot_do_it_says(make_editor: MakeEditor) -> None:
    editor, images = make_editor(), pictures(1, 16, 16)
    with pytest.raises(UnknownTaskError, match=r"this editor knows \(local, remove.*got 'contour'"):
        editor.edit(images, SAID[:1], ["contour"], [0], **KNOBS)
    with pytest.raises(ValueError, match="1 pictures, 2 instructions, 1 tasks, 1 seeds"):
        editor.edit(images, SAID[:2], TOLD[:1], [0], **KNOBS)
    with pytest.raises(ValueError, match=r"in \[-1, 1\], got values"):
        editor.edit(images * 300, SAID[:1], TOLD[:1], [0], **KNOBS)


def test_saved_and_loaded_it_edits_the_same(make_editor: MakeEditor, tmp_path: Path) -> None:
    editor, images = make_editor(), pictures(1, 16, 16)
    editor.add_task("contour", torch.arange(6) / 3)
    editor.save(tmp_path / "copy", torch.float32)
    again = sampling.load(str(tmp_path / "copy"))
    assert again.tasks == editor.tasks
    assert again.weights == editor.weights
    one, two = (e.edit(images, SAID[:1], ["contour"], [3], **KNOBS) for e in (editor, again))
    assert torch.equal(one, two)


def test_turns_keep_what_did_not_change(make_editor: MakeEditor, monkeypatch: pytest.MonkeyPatch) -> None:
    editor, image = make_editor(), pictures(1, 16, 16)
    made: list[tuple[Tensor, list[int]]] = []

    def fake(images: Tensor, instructions: Any, tasks: Any, seeds: list[int], **knobs: Any) -> Tensor:
        made.append((images, seeds))
        out = images + 0.001  # far below alpha
        out[..., :4, :4] = -images[..., :4, :4].sign()
        return out

    monkeypatch.setattr(editor, "edit", fake)
    after = multi_turn.edit_in_turns(editor, image, SAID, TOLD, 10, **KNOBS)
    assert [seeds for _, seeds in made] == [[10], [11], [12]]
    assert torch.equal(made[1][0], after[0])
    for one in after:
        assert torch.equal(one[..., 10:, 10:], image[..., 10:, 10:])
        assert not torch.equal(one[..., :4, :4], image[..., :4, :4])
    loose = multi_turn.edit_in_turns(editor, image, SAID, TOLD, 10, **KNOBS, alpha=0.0)
    torch.testing.assert_close(loose[-1][..., 10:, 10:], image[..., 10:, 10:] + 0.003)
    with pytest.raises(ValueError, match="3 instructions, 2 tasks"):
        multi_turn.edit_in_turns(editor, image, SAID, TOLD[:2], 0, **KNOBS)


def test_a_pack_travels_and_fits_one_editor_only(make_editor: MakeEditor, tmp_path: Path) -> None:
    editor, file = make_editor(), tmp_path / "contour.safetensors"
    made = Pack("contour", torch.arange(6) / 7, editor.weights, 8, {"start": "sketch"})
    task_pack.save(made, file)
    got = task_pack.add(editor, file)
    assert vars(got) | {"v": 0} == vars(made) | {"v": 0}
    assert editor.tasks[-1] == "contour"
    assert torch.equal(editor.net.table.rows(["contour"])[0], made.v)
    with torch.no_grad():
        editor.net.unet.conv_in.bias += 1
    editor.save(tmp_path / "other")
    with pytest.raises(PackError, match="an embedding means nothing to other weights"):
        task_pack.add(sampling.load(str(tmp_path / "other")), file)
    with pytest.raises(PackError, match="got no file"):
        task_pack.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no pack")
    with pytest.raises(PackError, match="is no task pack"):
        task_pack.load(tmp_path / "bad.safetensors")
