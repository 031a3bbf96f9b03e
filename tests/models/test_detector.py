from collections.abc import Callable
from typing import Any

import pytest
import torch

from emuedit.models import detector, image_tensors

ASKED = [["a red circle", "a blue star", "a red circle on grass"], ["a green square"]]


def owl(tokenizer: Any, kind: str, folder: str) -> None:
    import transformers

    name = {"owlvit": "OwlViT", "owlv2": "Owlv2"}[kind]
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
    with torch.no_grad():  # a random network's boxes are as thin as a line: keep them near the patches they belong to
        model.box_head.dense2.weight.mul_(0.01)
    model.save_pretrained(folder)
    shown = getattr(transformers, f"{name}ImageProcessor")(size={"height": 64, "width": 64})
    getattr(transformers, f"{name}Processor")(image_processor=shown, tokenizer=tokenizer).save_pretrained(folder)


@pytest.fixture(scope="module", params=["owlvit", "owlv2"])
def owl_folder(request: pytest.FixtureRequest, clip_tokenizer: Callable[..., Any], tmp_path_factory: Any) -> str:
    torch.manual_seed(2)
    folder = str(tmp_path_factory.mktemp(request.param))
    owl(clip_tokenizer(16), request.param, folder)
    return folder


def same_boxes(got: detector.Detections, boxes: torch.Tensor, scores: torch.Tensor) -> None:
    """Ours against the processor's own on a 40 x 56 picture, clipped and best first."""
    limits = torch.tensor([56.0, 40.0, 56.0, 40.0])
    boxes = boxes.clamp(min=torch.zeros(4), max=limits)
    solid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    order = scores[solid].argsort(descending=True, stable=True)
    torch.testing.assert_close(got.scores, scores[solid][order], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.boxes_px, boxes[solid][order], rtol=1e-4, atol=1e-3)


def test_owl_boxes_are_the_processors_own(owl_folder: str, pictures: torch.Tensor) -> None:
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    found = detector.load(owl_folder).detect(pictures, ASKED, threshold=0.0)
    model, processor = (
        AutoModelForZeroShotObjectDetection.from_pretrained(owl_folder).eval(),
        AutoProcessor.from_pretrained(owl_folder),
    )
    for picture, names, got in zip(image_tensors.to_pil(pictures), ASKED, found, strict=True):  # one at a time: no padding
        inputs = processor(images=picture, text=[names], return_tensors="pt", padding="max_length", max_length=16)
        with torch.no_grad():
            outputs = model(**inputs)
        (want,) = processor.post_process_grounded_object_detection(
            outputs, threshold=0.0, target_sizes=[(picture.height, picture.width)], text_labels=[names]
        )
        assert len(got) > 8
        assert got.boxes_px[:, 0::2].max() <= 56
        assert got.boxes_px[:, 0::2].max() > 40  # x runs along the width
        same_boxes(got, want["boxes"], want["scores"])
        assert set(got.phrase.tolist()) <= set(range(len(names)))


def test_threshold_and_overlap(owl_folder: str, pictures: torch.Tensor) -> None:
    finder = detector.load(owl_folder)
    everything = finder.detect(pictures, ASKED, threshold=0.0)[0]
    middle = everything.scores.median().item()
    fewer = finder.detect(pictures, ASKED, threshold=middle)[0]
    assert 0 < len(fewer) < len(everything)
    assert (fewer.scores > middle).all()
    single = finder.detect(pictures[1:], [["a green square"]], threshold=0.0, nms_iou=0.0)[0]
    assert 0 < len(single) < len(everything)
    lapped = pairwise_iou(single.boxes_px)
    assert lapped.fill_diagonal_(0).max() == 0


def pairwise_iou(boxes: torch.Tensor) -> torch.Tensor:
    from torchvision.ops import box_iou

    ious: torch.Tensor = box_iou(boxes, boxes)
    return ious


def test_pictures_without_phrases_have_no_boxes(owl_folder: str, pictures: torch.Tensor) -> None:
    finder = detector.load(owl_folder)
    nothing, something = finder.detect(pictures, [[], ASKED[0]], threshold=0.0)
    assert nothing.boxes_px.shape == (0, 4)
    torch.testing.assert_close(something, finder.detect(pictures[1:], ASKED[:1], threshold=0.0)[0])
    with pytest.raises(ValueError, match="one list of phrases a picture, got 1 for 2"):
        finder.detect(pictures, [["a star"]], threshold=0.1)
    with pytest.raises(ValueError, match="must not be empty"):
        finder.detect(pictures, [["a star"], [" "]], threshold=0.1)


def test_a_long_phrase_is_cut_to_the_models_length(owl_folder: str, pictures: torch.Tensor) -> None:
    assert len(detector.load(owl_folder).detect(pictures[:1], [["a red circle " * 20]], threshold=0.0)[0])


def test_a_tokenizer_owl_would_misread_is_refused(clip_tokenizer: Callable[..., Any], tmp_path: Any) -> None:
    from transformers import CLIPTokenizer

    vocabulary = {"<|startoftext|>": 0, "a": 1, "a</w>": 2, "<|endoftext|>": 3}
    owl(CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16), "owlvit", str(tmp_path))
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
    names = [f"[unused{i}]" for i in range(1100)]  # the network knows [CLS] [SEP] . ? by BERT's own ids
    for token, place in {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}.items():
        names[place] = token
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
    with torch.no_grad():  # random text features are so alike that every box would name the same phrase
        for weights in model.model.text_projection.parameters():
            weights.mul_(20)
    model.save_pretrained(folder)
    processor = GroundingDinoProcessor(
        image_processor=GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}),
        tokenizer=BertTokenizer(vocab=vocabulary),
    )
    processor.save_pretrained(folder)
    return str(folder)


def test_grounding_dino_boxes_are_the_processors_own(grounding_folder: str, pictures: torch.Tensor) -> None:
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    asked = [["A red circle", "a blue star", "green square."], ["a star"]]
    found = detector.load(grounding_folder).detect(pictures, asked, threshold=0.0)
    processor = AutoProcessor.from_pretrained(grounding_folder)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(grounding_folder).eval()
    texts = ["a red circle. a blue star. green square.", "a star."]
    inputs = processor(images=image_tensors.to_pil(pictures), text=texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        outputs = model(**inputs)
    wanted = processor.post_process_grounded_object_detection(
        outputs, inputs["input_ids"], threshold=0.0, text_threshold=0.0, target_sizes=[(40, 56)] * 2
    )
    # [CLS] a red circle . a blue star . green squ ##are . [SEP]
    spans = [[[1, 2, 3], [5, 6, 7], [9, 10, 11]], [[1, 2]]]
    for got, want, of, logits in zip(found, wanted, spans, outputs.logits, strict=True):
        scores, phrase = torch.stack([logits.sigmoid()[:, span].amax(dim=1) for span in of], dim=1).max(dim=1)
        same_boxes(got, want["boxes"], scores)
        torch.testing.assert_close(got.phrase, phrase[scores.argsort(descending=True, stable=True)])
        assert (want["scores"] >= scores - 1e-6).all()  # the processor also counts full stops


def test_grounding_dino_names_what_does_not_fit(grounding_folder: str, pictures: torch.Tensor) -> None:
    finder = detector.load(grounding_folder)
    with pytest.raises(ValueError, match="fit into 24 tokens"):
        finder.detect(pictures[:1], [["a red circle on grass"] * 6], threshold=0.0)
