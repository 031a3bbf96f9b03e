import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from emuedit import config
from emuedit.annotators import derived_maps, pose_estimation, semantic_segmentation
from emuedit.annotators.photo_annotators import Annotators, annotate
from emuedit.models import image_tensors
from emuedit.runtime import Runtime
from emuedit.synthesis.model_set import ModelSet
from tests.annotators.annotation import call

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


def save_vitpose(folder: Path, **experts: int) -> None:
    from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation, VitPoseImageProcessor

    backbone = VitPoseBackboneConfig(
        image_size=[64, 48], patch_size=[16, 16], hidden_size=16, num_hidden_layers=1, num_attention_heads=2, out_indices=[1],
        **experts,
    )  # fmt: skip
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


@pytest.mark.slow
@pytest.mark.parametrize("task", ["depth", "normal"])
def test_depth_targets_are_bright_where_near(small_annotators: Annotators, task: str, images: np.ndarray) -> None:
    from emuedit.models import depth

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


@pytest.mark.slow
def test_people_become_stick_figures(small_annotators: Annotators, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    targets, valid = call(small_annotators, "pose", np.concatenate([images] * 5))  # more images than one batch
    assert valid.all()
    assert 0 < targets.any(-1).mean() < 0.9
    np.testing.assert_array_equal(targets[:2], call(small_annotators, "pose", images)[0])
    monkeypatch.setattr(pose_estimation, "PERSON_SCORE", 0.99)
    targets, valid = call(small_annotators, "pose", images)
    assert not valid.any()  # no person found
    assert not targets.any()


@pytest.mark.slow
def test_the_experts_of_vitpose_plus_are_those_of_coco(small_annotators: Annotators, images: np.ndarray, tmp_path: Path) -> None:
    save_vitpose(tmp_path, num_experts=6, part_features=4)
    estimator = pose_estimation.load(small_annotators.people, str(tmp_path), "cpu")
    batch = image_tensors.from_uint8(images)
    joints = estimator.estimate_joints(batch)
    assert [people.shape[1:] for people in joints] == [(17, 3)] * 2

    def is_changed_by_expert(number: int) -> bool:
        layer = estimator.pose.backbone.encoder.layer[0].mlp
        weight = layer.experts[number].weight
        kept = weight.clone()
        weight.add_(torch.linspace(-3, 3, weight.numel()).view_as(weight))
        changed = estimator.estimate_joints(batch)
        weight.copy_(kept)
        return not np.array_equal(np.concatenate(changed), np.concatenate(joints))

    assert [is_changed_by_expert(number) for number in range(6)] == [True] + [False] * 5


def test_a_segmenter_that_crops_its_input_is_an_error(tmp_path: Path) -> None:
    save_segformer(tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    settings |= {"do_center_crop": True, "crop_size": {"height": 24, "width": 24}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"want an image processor that only resizes, got .* with do_center_crop"):
        semantic_segmentation.load(str(tmp_path), "cpu")


def test_a_stick_figure_has_the_limbs_with_confident_joints() -> None:
    joints = np.zeros((1, 17, 3), np.float32)
    joints[0, [5, 7]] = [(10, 20, 0.9), (40, 20, 0.9)]  # left shoulder and elbow
    joints[0, 9] = (40, 35, 0.1)  # a wrist with a low score
    targets = pose_estimation.draw_stick_figures(joints, 40, 56)
    expected = np.zeros((40, 56), bool)
    expected[20, 10:41] = True
    np.testing.assert_array_equal(targets.any(-1), expected)


@pytest.mark.slow
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


def test_local_networks_are_those_of_the_project_on_any_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models/rtdetr").mkdir(parents=True)
    ours = replace(annotate, people="models/rtdetr", pose="owner/name")
    monkeypatch.setattr(config, "import_function", lambda *names: ours)
    world = config.World.model_validate(yaml.safe_load((ROOT / "params.yaml").read_text())["world"])
    of_hub = world.model_copy(update={"depth": "owner/depth"})
    annotators = ModelSet(of_hub, tmp_path, Runtime("cpu", "float32")).annotate
    assert (annotators.people, annotators.pose) == (str(tmp_path / "models/rtdetr"), "owner/name")


def test_the_default_depth_network_is_that_of_the_world() -> None:
    """It was another one of the hub, of any version, whatever `world.depth` named."""
    world = config.World.model_validate(yaml.safe_load((ROOT / "params.yaml").read_text())["world"])
    of_photographs = world.model_copy(update={"annotators": "emuedit/annotators/photo_annotators.py"})
    assert ModelSet(of_photographs, ROOT, Runtime("cpu", "float32")).annotate.depth == str(ROOT / world.depth)
    with pytest.raises(ValueError, match=r"want a depth network .* name one: Annotators\(depth=\.\.\.\)"):
        annotate("depth", np.zeros((1, 8, 8, 3), np.uint8), [""], np.zeros((1, 4)), np.zeros((1, 8, 8), bool))
