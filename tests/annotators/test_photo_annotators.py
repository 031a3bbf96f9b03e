from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from emuedit import config
from emuedit.annotators import derived_maps, drawing, pose_estimation
from emuedit.annotators.photo_annotators import MASK_RGB, Annotators, annotate
from emuedit.runtime import Runtime
from emuedit.synthesis.model_set import ModelSet

ROOT = Path(__file__).parents[2]


def save_depth_anything(folder: Path) -> None:
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    sizes = {"reassemble_hidden_size": 16, "neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8}
    model = DepthAnythingForDepthEstimation(
        DepthAnythingConfig(backbone_config=backbone, patch_size=7, head_hidden_size=8, **sizes)
    )
    with torch.no_grad():  # the map of a random network is flat, and the last ReLU may set it all to 0
        model.head.conv3.weight.mul_(1000)
        model.head.conv3.bias.fill_(1.0)
    model.save_pretrained(folder)
    DPTImageProcessor(size={"height": 28, "width": 28}, ensure_multiple_of=7).save_pretrained(folder)


def save_rt_detr(folder: Path, names: tuple[str, ...] = ("person", "tie")) -> None:
    """Save a detector that finds a person in every box."""
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


def save_vitpose(folder: Path) -> None:
    from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation, VitPoseImageProcessor

    backbone = VitPoseBackboneConfig(
        image_size=[64, 48], patch_size=[16, 16], hidden_size=16, num_hidden_layers=1, num_attention_heads=2, out_indices=[1]
    )
    names = {i: f"joint {i}" for i in range(17)}
    model = VitPoseForPoseEstimation(VitPoseConfig(backbone_config=backbone, id2label=names, scale_factor=4))
    with torch.no_grad():  # the peaks of random heat maps are near 0
        model.head.conv.bias.fill_(1.0)
    model.save_pretrained(folder)
    VitPoseImageProcessor(size={"height": 64, "width": 48}).save_pretrained(folder)


def save_segformer(folder: Path) -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[3, 3], strides=[2, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, num_labels=5,
    )  # fmt: skip
    model = SegformerForSemanticSegmentation(config)
    with torch.no_grad():  # the classes of a random network are almost equally likely
        model.decode_head.classifier.weight.mul_(100)
    model.save_pretrained(folder)
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


@pytest.fixture(scope="module")
def small_annotators(tmp_path_factory: pytest.TempPathFactory) -> Annotators:
    """The real architectures with random weights."""
    torch.manual_seed(0)
    root, folders = tmp_path_factory.mktemp("annotators"), {}
    save = {"depth": save_depth_anything, "people": save_rt_detr, "pose": save_vitpose, "segmap": save_segformer}
    for name, save_network in save.items():
        save_network(root / name)
        folders[name] = str(root / name)
    return Annotators(**folders, device="cpu")


@pytest.fixture
def images() -> np.ndarray:
    """Two images 40 x 56: a white square on black, and uniform grey."""
    array = np.zeros((2, 40, 56, 3), np.uint8)
    array[0, 10:30, 16:36] = 255
    array[1] = 128
    return array


def call(annotators: Any, task: str, images: np.ndarray, **inputs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Call annotators with blank words, boxes and masks, except for those in `inputs`."""
    n, *size, _ = images.shape
    blank = {"words": [""] * n, "boxes_px": np.zeros((n, 4), np.float32), "masks": np.zeros((n, *size), bool)}
    targets, valid = annotators(task, images, *(blank | inputs).values())
    assert targets.shape == images.shape
    assert targets.dtype == np.uint8
    assert valid.shape == (n,)
    assert valid.dtype == bool
    return targets, valid


def test_a_box_is_drawn_just_outside_the_object(images: np.ndarray) -> None:
    boxes = np.array([[16.4, 10, 36, 29.5], [0, 0, 0, 0]], np.float32)
    targets, valid = call(annotate, "detect", images, boxes_px=boxes)
    assert valid.tolist() == [True, False]
    line = (targets[0] != images[0]).any(-1)
    expected = np.zeros((40, 56), bool)
    expected[8:32, 14:38] = True
    expected[10:30, 16:36] = False
    np.testing.assert_array_equal(line, expected)
    assert (targets[0][line] == (255, 0, 255)).all()
    np.testing.assert_array_equal(targets[1], images[1])
    whole_image = np.array([[0, 0, 56, 40]] * 2, np.float32)
    assert not call(annotate, "detect", images, boxes_px=whole_image)[1].any()  # no room around the boxes


def test_a_mask_is_filled_with_its_colour(images: np.ndarray) -> None:
    masks = np.zeros((2, 40, 56), bool)
    masks[0, 5:9, 7:20] = True
    targets, valid = call(annotate, "segment", images, masks=masks)
    assert valid.tolist() == [True, False]
    np.testing.assert_array_equal(targets, np.where(masks[..., None], MASK_RGB, images))


def test_colour_filters_do_what_their_names_say() -> None:
    images = np.random.default_rng(0).integers(60, 180, (1, 12, 20, 3)).astype(np.uint8)

    def apply(name: str) -> np.ndarray:
        targets, valid = call(annotate, "color", images, words=[name])
        assert valid.all()
        return targets.astype(float)

    p, std = images.astype(float), images.std()
    np.testing.assert_allclose(apply("brighten"), 255 - 0.75 * (255 - p), atol=0.51)
    np.testing.assert_allclose(apply("darken"), 0.6 * p, atol=0.51)
    np.testing.assert_array_equal(apply("hue"), p[..., [2, 0, 1]])
    assert apply("less contrast").std() < std < apply("more contrast").std()
    assert apply("desaturate").std(-1).mean() < p.std(-1).mean() < apply("saturate").std(-1).mean()
    assert apply("blur").std() < std < apply("sharpen").std()


def test_the_colour_filters_are_the_choices_of_the_prompt(images: np.ndarray) -> None:
    prompt = yaml.safe_load((ROOT / "emuedit/prompts/color.yaml").read_text())["color"]
    assert set(prompt["choices"]) == set(drawing.COLOUR_FILTERS)
    targets, valid = call(annotate, "color", images, words=["darken", "sing"])
    assert valid.tolist() == [True, False]
    np.testing.assert_array_equal(targets[1], images[1])


def test_a_plane_has_one_normal() -> None:
    y, x = np.mgrid[0:30, 0:40] / 40  # in units of the longer side
    depth = np.stack([0.5 * x + 0.25 * y, np.zeros((30, 40)), 1 - x])
    normals = 2 * derived_maps.normals(depth) - 1
    # nearer to the right: the normal points left; nearer below: it points up
    expected = np.array([[-0.5, 0.25, 1], [0, 0, 1], [1, 0, 1]])
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(normals, np.broadcast_to(expected[:, None, None], normals.shape), atol=1e-6)


def test_a_sketch_is_the_outline_of_a_square(images: np.ndarray) -> None:
    targets, valid = call(annotate, "sketch", images)
    assert valid.tolist() == [True, False]  # uniform grey has no edge
    dark = targets[0].max(-1) < 128
    assert dark[10:30, 15:17].all()  # both sides of the left edge
    assert dark[9:11, 16:36].all()
    assert (targets[0, 15:25, 21:31] == 255).all()  # no edge inside
    assert (targets[0, :5] == 255).all()
    faint = np.full((1, 20, 20, 3), 100, np.uint8)
    faint[:, :, 10:] += 16  # a step of 1/16: the darkness of a step is its height times the gain
    assert 255 - call(annotate, "sketch", faint)[0].min() == pytest.approx(16 * derived_maps.EDGE_GAIN, rel=0.15)


def test_class_colours_are_those_of_pascal_voc() -> None:
    expected = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (224, 224, 192)]
    assert derived_maps.class_colours(np.array([0, 1, 2, 3, 4, 255])).tolist() == [list(rgb) for rgb in expected]
    assert len(np.unique(derived_maps.class_colours(np.arange(256)), axis=0)) == 256


@pytest.mark.parametrize("task", ["depth", "normal"])
def test_depth_targets_are_bright_where_near(small_annotators: Annotators, task: str, images: np.ndarray) -> None:
    from emuedit.models import depth, image_tensors

    targets, valid = call(small_annotators, task, images[:1])
    assert valid.all()
    depth_maps = depth.load(small_annotators.depth).depth(image_tensors.from_uint8(images[:1])).numpy()
    expected = depth_maps[..., None].repeat(3, -1) if task == "depth" else derived_maps.normals(depth_maps)
    assert targets.std() > 1
    np.testing.assert_allclose(targets / 255, expected, atol=0.5 / 255 + 1e-6)


def test_a_segmentation_map_has_class_colours(small_annotators: Annotators, images: np.ndarray) -> None:
    targets, valid = call(small_annotators, "segmap", images[:1])
    assert valid.all()
    colours = np.unique(targets.reshape(-1, 3), axis=0)
    assert 1 < len(colours) <= 5
    assert set(map(tuple, colours.tolist())) <= set(map(tuple, derived_maps.class_colours(np.arange(5)).tolist()))


def test_people_become_stick_figures(small_annotators: Annotators, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    targets, valid = call(small_annotators, "pose", np.concatenate([images] * 5))  # more images than one batch
    assert valid.all()
    assert 0 < targets.any(-1).mean() < 0.9
    np.testing.assert_array_equal(targets[:2], call(small_annotators, "pose", images)[0])
    monkeypatch.setattr(pose_estimation, "PERSON_SCORE", 0.99)
    targets, valid = call(small_annotators, "pose", images)
    assert not valid.any()  # no person found
    assert not targets.any()


def test_a_stick_figure_has_the_limbs_with_confident_joints() -> None:
    joints = np.zeros((1, 17, 3), np.float32)
    joints[0, [5, 7]] = [(10, 20, 0.9), (40, 20, 0.9)]  # left shoulder and elbow
    joints[0, 9] = (40, 35, 0.1)  # a wrist with a low score
    targets = pose_estimation.draw_stick_figures(joints, 40, 56)
    expected = np.zeros((40, 56), bool)
    expected[20, 10:41] = True
    np.testing.assert_array_equal(targets.any(-1), expected)


def test_a_detector_without_the_class_person_is_an_error(small_annotators: Annotators, tmp_path: Path) -> None:
    save_rt_detr(tmp_path, ("dog", "tie"))
    with pytest.raises(ValueError, match="want a detector with one class 'person', got 0 of 2"):
        pose_estimation.load(str(tmp_path), small_annotators.pose, "cpu")


def test_the_file_is_importable_by_path_and_other_tasks_are_an_error(images: np.ndarray) -> None:
    assert config.import_function("emuedit/annotators/photo_annotators.py", "annotate") is annotate
    with pytest.raises(ValueError, match=r"want a task out of detect, segment, color, depth.*got 'remove'"):
        call(annotate, "remove", images)


def test_networks_run_where_the_pairs_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    world = config.World.model_validate(yaml.safe_load((ROOT / "params.yaml").read_text())["world"])
    of_photographs = world.model_copy(update={"annotators": "emuedit/annotators/photo_annotators.py"})
    assert ModelSet(of_photographs, ROOT, Runtime("cuda:1", "float32")).annotate.device == "cuda:1"
    assert annotate.device == "auto"


def test_the_default_depth_network_is_that_of_the_world() -> None:
    """It was another one of the hub, of any version, whatever `world.depth` named."""
    world = config.World.model_validate(yaml.safe_load((ROOT / "params.yaml").read_text())["world"])
    of_photographs = world.model_copy(update={"annotators": "emuedit/annotators/photo_annotators.py"})
    assert ModelSet(of_photographs, ROOT, Runtime("cpu", "float32")).annotate.depth == str(ROOT / world.depth)
    with pytest.raises(ValueError, match=r"want a depth network .* name one: Annotators\(depth=\.\.\.\)"):
        annotate("depth", np.zeros((1, 8, 8, 3), np.uint8), [""], np.zeros((1, 4)), np.zeros((1, 8, 8), bool))
