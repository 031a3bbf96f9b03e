import json
from pathlib import Path

import numpy as np
import pytest
import torch

from emuedit import reference_check
from emuedit.models import image_tensors, sam_builder, segmenter

TINY = sam_builder.SamConfig(
    encoder_width=16, encoder_depth=2, encoder_heads=2, global_attn_indexes=(1,), image_size=64, patch_size=8,
    window_size=3, prompt_embed_dim=16, decoder_heads=2, decoder_mlp_dim=32, iou_head_hidden_dim=16,
    pixel_mean=(127.5, 120.0, 110.0), pixel_std=(60.0, 61.0, 62.0),
)  # fmt: skip
BOXES = [torch.tensor([[2.0, 3.0, 20.0, 30.0], [30.0, 5.0, 55.0, 39.0]]), torch.tensor([[10.0, 10.0, 50.0, 20.0]])]


def small_segmenter() -> segmenter.Segmenter:
    torch.manual_seed(0)
    model = sam_builder.build(TINY).eval()
    torch.nn.init.normal_(model.image_encoder.pos_embed)  # with the initial 0, a random Sam gives flat masks
    return segmenter.Segmenter(model, TINY)


@pytest.mark.slow
@pytest.mark.parametrize("name", sam_builder.CONFIGS)
def test_the_named_configs_equal_those_of_segment_anything(name: str) -> None:
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        ours, reference = sam_builder.build(sam_builder.CONFIGS[name]), sam_model_registry[name]()
    shapes = {key: value.shape for key, value in reference.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == shapes
    assert str(ours) == str(reference)
    windows = [[block.window_size for block in model.image_encoder.blocks] for model in (ours, reference)]
    assert windows[0] == windows[1]
    with torch.device("cpu"):
        mean = torch.tensor(sam_builder.CONFIGS[name].pixel_mean)
    assert mean.tolist() == pytest.approx([123.675, 116.28, 103.53])


def test_masks_equal_those_of_sam_predictor(two_images: torch.Tensor) -> None:
    from segment_anything import SamPredictor

    ours = small_segmenter()
    results = ours.segment(two_images, BOXES)
    predictor = SamPredictor(ours.model)
    for array, boxes, result in zip(image_tensors.to_uint8(two_images), BOXES, results, strict=True):
        assert result.masks.shape == (len(boxes), 40, 56)
        assert result.masks.dtype == torch.bool
        predictor.set_image(array)
        for box, mask, iou in zip(boxes, result.masks, result.iou, strict=True):
            expected, score, _ = predictor.predict(box=box.numpy(), multimask_output=False)
            np.testing.assert_array_equal(mask.numpy(), expected[0])
            assert iou.item() == pytest.approx(float(score[0]), abs=1e-5)
    assert 0 < torch.cat([result.masks for result in results]).float().mean() < 1


def test_an_image_of_the_networks_size_is_not_resized() -> None:
    images = torch.rand(1, 3, 64, 48) * 2 - 1
    ours = small_segmenter()
    ours.resize.apply_image = None
    assert ours.segment(images, [torch.tensor([[1.0, 2.0, 30.0, 60.0]])])[0].masks.shape == (1, 64, 48)


def test_an_image_without_boxes_has_no_masks(two_images: torch.Tensor) -> None:
    ours = small_segmenter()
    no_masks, masks = ours.segment(two_images, [torch.zeros(0, 4), BOXES[1]])
    assert no_masks.masks.shape == (0, 40, 56)
    torch.testing.assert_close(masks, ours.segment(two_images, BOXES)[1])
    with pytest.raises(ValueError, match=r"\[K, 4\] .* got \(4,\)"):
        ours.segment(two_images, [BOXES[0][0], BOXES[1]])
    with pytest.raises(ValueError, match="one tensor of boxes per image, got 1 for 2"):
        ours.segment(two_images, BOXES[:1])


@pytest.mark.slow
def test_a_saved_folder_gives_the_same_masks(two_images: torch.Tensor, tmp_path: Path) -> None:
    ours = small_segmenter()
    ours.save(tmp_path)
    loaded = segmenter.load(str(tmp_path))
    assert loaded.config == TINY
    torch.testing.assert_close(loaded.segment(two_images, BOXES), ours.segment(two_images, BOXES))
    bfloat16 = segmenter.load(str(tmp_path), dtype=torch.bfloat16).segment(two_images, BOXES)
    assert bfloat16[0].masks.shape == (2, 40, 56)
    assert bfloat16[0].iou.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_released_checkpoint_is_identified_by_its_width(
    suffix: str, two_images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    ours, file = small_segmenter(), tmp_path / f"sam{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(ours.model.state_dict(), file)
    with pytest.raises(ValueError, match=r"vit_b \(768\).*got .*encoder width 16"):
        segmenter.load(str(file))
    monkeypatch.setitem(sam_builder.CONFIGS, "vit_xs", TINY)
    torch.testing.assert_close(segmenter.load(str(file)).segment(two_images, BOXES), ours.segment(two_images, BOXES))


def test_a_checkpoint_that_would_run_code_is_an_error(tmp_path: Path) -> None:
    import pickle

    torch.save({"image_encoder.pos_embed": print}, tmp_path / "sam.pth")
    with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights.only"):
        segmenter.load(str(tmp_path / "sam.pth"))


@pytest.mark.parametrize(("suffix", "message"), [(".pth", "truncated to"), (".safetensors", "bytes, want")])
def test_a_checkpoint_that_was_not_downloaded_completely_is_named(suffix: str, message: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file = tmp_path / f"sam{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(small_segmenter().model.state_dict(), file)
    assert list(reference_check.problems({"world": {"segmenter": file.name}}, {}, tmp_path)) == []
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)
    (problem,) = reference_check.problems({"world": {"segmenter": file.name}}, {}, tmp_path)
    assert problem.startswith(f"world.segmenter: {file.name}: ")
    assert message in problem
    with pytest.raises(ValueError, match=f"{file}.* {message}"):
        segmenter.load(str(file))


def test_a_web_page_in_place_of_a_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "sam.pth").write_text("<!doctype html><title>403 Forbidden</title>")
    (problem,) = reference_check.problems({"world": {"segmenter": "sam.pth"}}, {}, tmp_path)
    assert problem == "world.segmenter: sam.pth: a web page; copy or download it again"
    with pytest.raises(ValueError, match=r"want a complete checkpoint, got .*sam\.pth: a web page"):
        segmenter.load(str(tmp_path / "sam.pth"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, r"unknown keys \['colour'\]; known are"),
        ({"encoder_width": None}, "incomplete: .*encoder_width"),
        ({"patch_size": 7}, "image_size / patch_size must be a whole number, got 64 / 7"),
    ],
)
def test_a_wrong_config_is_an_error(change: dict[str, int | None], message: str, tmp_path: Path) -> None:
    small_segmenter().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(ValueError, match=message):
        segmenter.load(str(tmp_path))
