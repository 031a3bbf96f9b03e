from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from emuedit import config
from emuedit.annotators import derived_maps, drawing, pose_estimation
from emuedit.annotators.photo_annotators import MASK_RGB, Annotators, annotate

ROOT = Path(__file__).parents[2]
Ask = Callable[..., tuple[np.ndarray, np.ndarray]]


def depth_anything(folder: Path) -> None:
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    sizes = {"reassemble_hidden_size": 16, "neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8}
    model = DepthAnythingForDepthEstimation(
        DepthAnythingConfig(backbone_config=backbone, patch_size=7, head_hidden_size=8, **sizes)
    )
    with torch.no_grad():  # a random network's map is flat, and the last ReLU may leave it all 0
        model.head.conv3.weight.mul_(1000)
        model.head.conv3.bias.fill_(1.0)
    model.save_pretrained(folder)
    DPTImageProcessor(size={"height": 28, "width": 28}, ensure_multiple_of=7).save_pretrained(folder)


def rt_detr(folder: Path, names: tuple[str, ...] = ("person", "tie")) -> None:
    """Finds a person or a tie wherever it looks."""
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor, RTDetrResNetConfig

    backbone = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[8, 16, 16], encoder_ffn_dim=16,
        encoder_attention_heads=2, d_model=16, decoder_in_channels=[16, 16, 16], decoder_layers=1, decoder_ffn_dim=16,
        decoder_attention_heads=2, num_queries=4, num_denoising=0,
        hidden_expansion=0.5, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)},
    )  # fmt: skip
    model = RTDetrForObjectDetection(config).eval()
    with torch.no_grad():
        for head in model.model.decoder.class_embed:
            head.weight.mul_(0)
            head.bias.copy_(torch.tensor([2.0, -4.0]))
    model.save_pretrained(folder)
    RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


def vitpose(folder: Path) -> None:
    from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation, VitPoseImageProcessor

    backbone = VitPoseBackboneConfig(
        image_size=[64, 48], patch_size=[16, 16], hidden_size=16, num_hidden_layers=1, num_attention_heads=2, out_indices=[1]
    )
    names = {i: f"joint {i}" for i in range(17)}
    model = VitPoseForPoseEstimation(VitPoseConfig(backbone_config=backbone, id2label=names, scale_factor=4))
    with torch.no_grad():  # random heat maps peak near 0
        model.head.conv.bias.fill_(1.0)
    model.save_pretrained(folder)
    VitPoseImageProcessor(size={"height": 64, "width": 48}).save_pretrained(folder)


def segformer(folder: Path) -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[3, 3], strides=[2, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, num_labels=5,
    )  # fmt: skip
    model = SegformerForSemanticSegmentation(config)
    with torch.no_grad():  # nor is any class of a random network much likelier than another
        model.decode_head.classifier.weight.mul_(100)
    model.save_pretrained(folder)
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Annotators:
    """The real architectures with random weights."""
    torch.manual_seed(0)
    root, made = tmp_path_factory.mktemp("annotators"), {}
    for name, make in {"depth": depth_anything, "people": rt_detr, "pose": vitpose, "segmap": segformer}.items():
        make(root / name)
        made[name] = str(root / name)
    return Annotators(**made, device="cpu")


@pytest.fixture
def images() -> np.ndarray:
    """Two pictures, 40 x 56: a white square on black, and all grey."""
    shown = np.zeros((2, 40, 56, 3), np.uint8)
    shown[0, 10:30, 16:36] = 255
    shown[1] = 128
    return shown


def ask(task: str, images: np.ndarray, who: Any = annotate, **given: Any) -> tuple[np.ndarray, np.ndarray]:
    n, *size, _ = images.shape
    blank = {"words": [""] * n, "boxes_px": np.zeros((n, 4), np.float32), "masks": np.zeros((n, *size), bool)}
    drawn, fine = who(task, images, *(blank | given).values())
    assert drawn.shape == images.shape
    assert drawn.dtype == np.uint8
    assert fine.shape == (n,)
    assert fine.dtype == bool
    return drawn, fine


def test_a_box_is_drawn_just_outside_of_the_object(images: np.ndarray) -> None:
    boxes = np.array([[16.4, 10, 36, 29.5], [0, 0, 0, 0]], np.float32)
    drawn, fine = ask("detect", images, boxes_px=boxes)
    assert fine.tolist() == [True, False]
    line = (drawn[0] != images[0]).any(-1)
    want = np.zeros((40, 56), bool)
    want[8:32, 14:38] = True
    want[10:30, 16:36] = False
    np.testing.assert_array_equal(line, want)
    assert (drawn[0][line] == (255, 0, 255)).all()
    np.testing.assert_array_equal(drawn[1], images[1])
    assert not ask("detect", images, boxes_px=np.array([[0, 0, 56, 40]] * 2, np.float32))[1].any()  # no room around


def test_a_mask_is_painted_over(images: np.ndarray) -> None:
    masks = np.zeros((2, 40, 56), bool)
    masks[0, 5:9, 7:20] = True
    drawn, fine = ask("segment", images, masks=masks)
    assert fine.tolist() == [True, False]
    np.testing.assert_array_equal(drawn, np.where(masks[..., None], MASK_RGB, images))


def test_filters_do_what_their_names_say() -> None:
    images = np.random.default_rng(0).integers(60, 180, (1, 12, 20, 3)).astype(np.uint8)

    def by(name: str) -> np.ndarray:
        drawn, fine = ask("color", images, words=[name])
        assert fine.all()
        return drawn.astype(float)

    p, spread = images.astype(float), images.std()
    np.testing.assert_allclose(by("brighten"), 255 - 0.75 * (255 - p), atol=0.51)
    np.testing.assert_allclose(by("darken"), 0.6 * p, atol=0.51)
    np.testing.assert_array_equal(by("hue"), p[..., [2, 0, 1]])
    assert by("less contrast").std() < spread < by("more contrast").std()
    assert by("desaturate").std(-1).mean() < p.std(-1).mean() < by("saturate").std(-1).mean()
    assert by("blur").std() < spread < by("sharpen").std()


def test_the_filters_are_those_the_agent_asks_for(images: np.ndarray) -> None:
    agent = yaml.safe_load((ROOT / "emuedit/prompts/color.yaml").read_text())["color"]
    assert set(agent["choices"]) == set(drawing.FILTERS)
    drawn, fine = ask("color", images, words=["darken", "sing"])
    assert fine.tolist() == [True, False]
    np.testing.assert_array_equal(drawn[1], images[1])


def test_a_plane_has_one_normal() -> None:
    y, x = np.mgrid[0:30, 0:40] / 40  # the longer side is the unit
    depth = np.stack([0.5 * x + 0.25 * y, np.zeros((30, 40)), 1 - x])
    found = 2 * derived_maps.normals(depth) - 1
    want = np.array([[-0.5, 0.25, 1], [0, 0, 1], [1, 0, 1]])  # nearer to the right: it faces left; below: it faces up
    want /= np.linalg.norm(want, axis=-1, keepdims=True)
    np.testing.assert_allclose(found, np.broadcast_to(want[:, None, None], found.shape), atol=1e-6)


def test_a_sketch_is_the_outline_of_a_square(images: np.ndarray) -> None:
    drawn, fine = ask("sketch", images)
    assert fine.tolist() == [True, False]  # nothing to sketch in grey
    dark = drawn[0].max(-1) < 128
    assert dark[10:30, 15:17].all()  # both sides of its left edge
    assert dark[9:11, 16:36].all()
    assert (drawn[0, 15:25, 21:31] == 255).all()  # nothing within
    assert (drawn[0, :5] == 255).all()
    faint = np.full((1, 20, 20, 3), 100, np.uint8)
    faint[:, :, 10:] += 16  # a step of 1/16: the ink of a step is its height times the gain
    assert 255 - ask("sketch", faint)[0].min() == pytest.approx(16 * derived_maps.EDGE_GAIN, rel=0.15)


def test_the_colours_of_classes_are_pascal_vocs() -> None:
    want = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (224, 224, 192)]
    assert derived_maps.class_colours(np.array([0, 1, 2, 3, 4, 255])).tolist() == [list(one) for one in want]
    assert len(np.unique(derived_maps.class_colours(np.arange(256)), axis=0)) == 256


@pytest.mark.parametrize("task", ["depth", "normal"])
def test_depth_is_drawn_near_bright(small: Annotators, task: str, images: np.ndarray) -> None:
    from emuedit.models import depth, image_tensors

    drawn, fine = ask(task, images[:1], small)
    assert fine.all()
    near = depth.load(small.depth).depth(image_tensors.from_uint8(images[:1])).numpy()
    want = near[..., None].repeat(3, -1) if task == "depth" else derived_maps.normals(near)
    assert drawn.std() > 1
    np.testing.assert_allclose(drawn / 255, want, atol=0.5 / 255 + 1e-6)


def test_a_map_of_classes_has_their_colours(small: Annotators, images: np.ndarray) -> None:
    drawn, fine = ask("segmap", images[:1], small)
    assert fine.all()
    some = np.unique(drawn.reshape(-1, 3), axis=0)
    assert 1 < len(some) <= 5
    assert set(map(tuple, some.tolist())) <= set(map(tuple, derived_maps.class_colours(np.arange(5)).tolist()))


def test_people_become_stick_figures(small: Annotators, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, fine = ask("pose", np.concatenate([images] * 5), small)  # more than go through a network together
    assert fine.all()
    assert 0 < drawn.any(-1).mean() < 0.9
    np.testing.assert_array_equal(drawn[:2], ask("pose", images, small)[0])
    monkeypatch.setattr(pose_estimation, "PERSON_SCORE", 0.99)
    drawn, fine = ask("pose", images, small)
    assert not fine.any()  # nobody there
    assert not drawn.any()


def test_a_figure_has_the_limbs_whose_joints_are_seen() -> None:
    joints = np.zeros((1, 17, 3), np.float32)
    joints[0, [5, 7]] = [(10, 20, 0.9), (40, 20, 0.9)]  # left shoulder and elbow
    joints[0, 9] = (40, 35, 0.1)  # a wrist that is hardly seen
    drawn = pose_estimation.stick_figures(joints, 40, 56)
    want = np.zeros((40, 56), bool)
    want[20, 10:41] = True
    np.testing.assert_array_equal(drawn.any(-1), want)


def test_a_detector_that_knows_no_people_is_refused(small: Annotators, tmp_path: Path) -> None:
    rt_detr(tmp_path, ("dog", "tie"))
    with pytest.raises(ValueError, match="want a detector with one class 'person', got 0 of 2"):
        pose_estimation.load(str(tmp_path), small.pose, "cpu")


def test_a_world_names_them_and_other_tasks_are_refused(images: np.ndarray) -> None:
    assert config.import_function("emuedit/annotators/photo_annotators.py", "annotate") is annotate
    with pytest.raises(ValueError, match=r"want detect, segment, color, depth.*got 'remove'"):
        ask("remove", images)
