from collections.abc import Callable
from typing import Any

import pytest
import torch

from emuedit.models import detector, image_tensors

PHRASES = [["a red circle", "a blue star", "a red circle on grass"], ["a green square"]]


def save_owl(tokenizer: Any, model_type: str, folder: str) -> None:
    """Save a small random OWL-ViT or OWLv2."""
    import transformers

    name = {"owlvit": "OwlViT", "owlv2": "Owlv2"}[model_type]
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 16, "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 64, "patch_size": 16,
    }  # fmt: skip
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision, projection_dim=16)
    model = getattr(transformers, f"{name}ForObjectDetection")(config)
    with torch.no_grad():  # boxes of a random network may have no width: keep them near the default
        model.box_head.dense2.weight.mul_(0.01)
    model.save_pretrained(folder)
    image_processor = getattr(transformers, f"{name}ImageProcessor")(size={"height": 64, "width": 64})
    getattr(transformers, f"{name}Processor")(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)


@pytest.fixture(scope="module", params=["owlvit", "owlv2"])
def owl_folder(request: pytest.FixtureRequest, clip_tokenizer: Callable[..., Any], tmp_path_factory: Any) -> str:
    torch.manual_seed(2)
    folder = str(tmp_path_factory.mktemp(request.param))
    save_owl(clip_tokenizer(16), request.param, folder)
    return folder


def assert_same_boxes(detections: detector.Detections, boxes: torch.Tensor, scores: torch.Tensor) -> None:
    """Detections equal the processor's boxes and scores on an image 40 x 56, clipped and sorted by score."""
    limits = torch.tensor([56.0, 40.0, 56.0, 40.0])
    boxes = boxes.clamp(min=torch.zeros(4), max=limits)
    not_empty = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    order = scores[not_empty].argsort(descending=True, stable=True)
    torch.testing.assert_close(detections.scores, scores[not_empty][order], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(detections.boxes_px, boxes[not_empty][order], rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_owl_boxes_equal_those_of_the_processor(owl_folder: str, two_images: torch.Tensor) -> None:
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    results = detector.load(owl_folder).detect(two_images, PHRASES, threshold=0.0)
    model, processor = (
        AutoModelForZeroShotObjectDetection.from_pretrained(owl_folder).eval(),
        AutoProcessor.from_pretrained(owl_folder),
    )
    # one image at a time, so that the reference has no padding
    for image, names, detections in zip(image_tensors.to_pil(two_images), PHRASES, results, strict=True):
        inputs = processor(images=image, text=[names], return_tensors="pt", padding="max_length", max_length=16)
        with torch.no_grad():
            outputs = model(**inputs)
        (expected,) = processor.post_process_grounded_object_detection(
            outputs, threshold=0.0, target_sizes=[(image.height, image.width)], text_labels=[names]
        )
        assert len(detections) > 8
        assert detections.boxes_px[:, 0::2].max() <= 56
        assert detections.boxes_px[:, 0::2].max() > 40  # x runs along the width
        assert_same_boxes(detections, expected["boxes"], expected["scores"])
        assert set(detections.phrase.tolist()) <= set(range(len(names)))


def test_threshold_and_non_maximum_suppression(owl_folder: str, two_images: torch.Tensor) -> None:
    model = detector.load(owl_folder)
    unfiltered = model.detect(two_images, PHRASES, threshold=0.0)[0]
    median = unfiltered.scores.median().item()
    filtered = model.detect(two_images, PHRASES, threshold=median)[0]
    assert 0 < len(filtered) < len(unfiltered)
    assert (filtered.scores > median).all()
    suppressed = model.detect(two_images[1:], [["a green square"]], threshold=0.0, nms_iou=0.0)[0]
    assert 0 < len(suppressed) < len(unfiltered)
    overlaps = pairwise_iou(suppressed.boxes_px)
    assert overlaps.fill_diagonal_(0).max() == 0


def pairwise_iou(boxes: torch.Tensor) -> torch.Tensor:
    from torchvision.ops import box_iou

    ious: torch.Tensor = box_iou(boxes, boxes)
    return ious


def test_images_without_phrases_have_no_boxes(owl_folder: str, two_images: torch.Tensor) -> None:
    model = detector.load(owl_folder)
    no_detections, detections = model.detect(two_images, [[], PHRASES[0]], threshold=0.0)
    assert no_detections.boxes_px.shape == (0, 4)
    torch.testing.assert_close(detections, model.detect(two_images[1:], PHRASES[:1], threshold=0.0)[0])
    with pytest.raises(ValueError, match="one list of phrases per image, got 1 for 2"):
        model.detect(two_images, [["a star"]], threshold=0.1)
    with pytest.raises(ValueError, match="want non-blank phrases"):
        model.detect(two_images, [["a star"], [" "]], threshold=0.1)


def test_a_long_phrase_is_cut_to_the_models_length(owl_folder: str, two_images: torch.Tensor) -> None:
    assert len(detector.load(owl_folder).detect(two_images[:1], [["a red circle " * 20]], threshold=0.0)[0])


def test_a_tokenizer_that_owl_would_misread_is_an_error(clip_tokenizer: Callable[..., Any], tmp_path: Any) -> None:
    from transformers import CLIPTokenizer

    vocabulary = {"<|startoftext|>": 0, "a": 1, "a</w>": 2, "<|endoftext|>": 3}
    save_owl(CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16), "owlvit", str(tmp_path))
    with pytest.raises(ValueError, match="got 0 and 3 of 4"):
        detector.load(str(tmp_path))


@pytest.fixture(scope="module")
def grounding_folder(tmp_path_factory: Any) -> str:
    from transformers import (
        BertConfig,
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("grounding")
    names = [f"[unused{i}]" for i in range(1100)]  # the network expects [CLS] [SEP] . ? at BERT's ids
    for token, index in {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}.items():
        names[index] = token
    words = ["a", "red", "circle", "blue", "star", "on", "grass", "green", "squ", "##are"]
    names[1040 : 1040 + len(words)] = words
    vocabulary = {name: i for i, name in enumerate(names)}
    backbone = SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 2, 2], window_size=2,
        out_features=["stage2", "stage3"], out_indices=None,
    )  # fmt: skip
    text = BertConfig(
        vocab_size=len(names), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    )  # fmt: skip
    config = GroundingDinoConfig(
        backbone_config=backbone, text_config=text, d_model=32, encoder_layers=1, decoder_layers=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=12,
        num_feature_levels=3, encoder_n_points=2, decoder_n_points=2, max_text_len=24, use_pretrained_backbone=False,
    )  # fmt: skip
    model = GroundingDinoForObjectDetection(config)
    with torch.no_grad():  # random text features are so similar that every box would have the same phrase
        for weights in model.model.text_projection.parameters():
            weights.mul_(20)
    model.save_pretrained(folder)
    processor = GroundingDinoProcessor(
        image_processor=GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}),
        tokenizer=BertTokenizer(vocab=vocabulary),
    )
    processor.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_grounding_dino_boxes_equal_those_of_the_processor(grounding_folder: str, two_images: torch.Tensor) -> None:
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    phrases = [["A red circle", "a blue star", "green square."], ["a star"]]
    results = detector.load(grounding_folder).detect(two_images, phrases, threshold=0.0)
    processor = AutoProcessor.from_pretrained(grounding_folder)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(grounding_folder).eval()
    texts = ["a red circle. a blue star. green square.", "a star."]
    inputs = processor(images=image_tensors.to_pil(two_images), text=texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        outputs = model(**inputs)
    expected = processor.post_process_grounded_object_detection(
        outputs, inputs["input_ids"], threshold=0.0, text_threshold=0.0, target_sizes=[(40, 56)] * 2
    )
    # [CLS] a red circle . a blue star . green squ ##are . [SEP]
    spans = [[[1, 2, 3], [5, 6, 7], [9, 10, 11]], [[1, 2]]]
    for detections, reference, image_spans, logits in zip(results, expected, spans, outputs.logits, strict=True):
        scores, phrase = torch.stack([logits.sigmoid()[:, span].amax(dim=1) for span in image_spans], dim=1).max(dim=1)
        assert_same_boxes(detections, reference["boxes"], scores)
        torch.testing.assert_close(detections.phrase, phrase[scores.argsort(descending=True, stable=True)])
        assert (reference["scores"] >= scores - 1e-6).all()  # the processor also counts full stops


@pytest.mark.slow
def test_of_a_too_long_phrase_grounding_dino_gets_the_first_tokens(grounding_folder: str, two_images: torch.Tensor) -> None:
    """One such name of an object ended the stage `pairs`."""
    model = detector.load(grounding_folder)
    long = "a red circle on grass " * 4 + "a green square"  # 24 tokens with the two of "square"; 21 fit beside [CLS] . [SEP]
    cut, expected = model.detect(two_images[[0, 0]], [[long], ["a red circle on grass " * 4 + "a"]], threshold=0.0)
    assert len(cut) > 0
    torch.testing.assert_close(cut.boxes_px, expected.boxes_px, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(cut.scores, expected.scores, rtol=1e-5, atol=1e-6)
    (beside,) = model.detect(two_images[:1], [["a blue star", long]], threshold=0.0)
    assert (beside.phrase == 1).sum() == len(cut)


@pytest.mark.slow
def test_phrases_that_do_not_fit_into_one_prompt_are_given_in_several(grounding_folder: str, two_images: torch.Tensor) -> None:
    model = detector.load(grounding_folder)
    phrases = ["a red circle on grass", "a blue star", "green square", "a red star on grass", "a blue circle on grass"]
    many, single = model.detect(two_images, [phrases, phrases[:1]], threshold=0.0)
    groups = model._prompt_groups(phrases)
    assert len(groups) > 1
    assert [k for group in groups for k in group] == [0, 1, 2, 3, 4]
    parts = [model.detect(two_images[:1], [[phrases[k] for k in group]], threshold=0.0)[0] for group in groups]
    torch.testing.assert_close(many.scores, torch.cat([part.scores for part in parts]).sort(descending=True).values)
    expected = [group[k] for group, part in zip(groups, parts, strict=True) for k in part.phrase.tolist()]
    assert sorted(many.phrase.tolist()) == sorted(expected)
    torch.testing.assert_close(single.scores, model.detect(two_images[1:], [phrases[:1]], threshold=0.0)[0].scores)


@pytest.fixture(params=["owlvit", "owlv2", "grounding-dino"])
def any_detector(request: pytest.FixtureRequest, tmp_path: Any) -> detector.Detector:
    """A detector of each family."""
    if request.param == "grounding-dino":
        return detector.load(request.getfixturevalue("grounding_folder"))
    torch.manual_seed(2)
    save_owl(request.getfixturevalue("clip_tokenizer")(16), request.param, str(tmp_path))
    return detector.load(str(tmp_path))


@pytest.mark.slow
def test_a_phrase_without_a_word_gets_no_boxes(any_detector: detector.Detector, two_images: torch.Tensor) -> None:
    alone, beside = any_detector.detect(two_images, [["?", "."], [".", "a red circle", "? .", "a blue star"]], threshold=0.0)
    assert len(alone) == 0
    assert set(beside.phrase.tolist()) <= {1, 3}
    (expected,) = any_detector.detect(two_images[1:], [["a red circle", "a blue star"]], threshold=0.0)
    assert len(expected) > 0
    torch.testing.assert_close(beside.boxes_px, expected.boxes_px, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(beside.scores, expected.scores, rtol=1e-5, atol=1e-6)
    assert torch.equal(beside.phrase, torch.tensor([1, 3])[expected.phrase])


@pytest.mark.slow
def test_a_phrase_that_the_tokenizer_drops_gets_no_boxes(grounding_folder: str, two_images: torch.Tensor) -> None:
    model = detector.load(grounding_folder)
    zero_width_space = "\u200b"
    with_it, without_it = model.detect(two_images[[0, 0]], [[zero_width_space, "a star"], ["a star"]], threshold=0.0)
    assert set(with_it.phrase.tolist()) == {1}
    torch.testing.assert_close(with_it.boxes_px, without_it.boxes_px)
