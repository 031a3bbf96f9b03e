"""Adapters on a tiny T5 with random weights."""

from pathlib import Path

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration, T5TokenizerFast

from emuedit.predictor import classifier_adapters, task_predictor
from emuedit.predictor.classifier_adapters import AdapterSettings
from emuedit.predictor.task_predictor import TaskPredictor

TEXTS = ["remove the star", "draw the lines"]


@pytest.fixture(scope="module")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A gated T5 such as Flan-T5, tiny, with a tokenizer of letters."""
    folder = tmp_path_factory.mktemp("t5")
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -1.0),
        *((letter, -2.0) for letter in "abcdefghijklmnopqrstuvwxyz"),
    ]
    T5TokenizerFast(vocab=pieces, extra_ids=0).save_pretrained(folder)
    config = T5Config(
        vocab_size=len(pieces), d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False, decoder_start_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        T5ForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)


def adapted(folder: str, dtype: torch.dtype) -> TaskPredictor:
    predictor = task_predictor.from_t5(folder, ["remove", "sketch"], 16, dtype=dtype)
    classifier_adapters.add_adapters(predictor.model, AdapterSettings(rank=4))
    return predictor


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_learn_while_the_weights_of_the_t5_stay(tiny_t5: str, dtype: torch.dtype, tmp_path: Path) -> None:
    predictor = adapted(tiny_t5, dtype)
    model = predictor.model
    plain = task_predictor.from_t5(tiny_t5, ["remove", "sketch"], 16, dtype=dtype)
    torch.testing.assert_close(predictor.all_logits(TEXTS), plain.all_logits(TEXTS), atol=2e-2, rtol=0)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert all("lora_" in name or "classification_head" in name for name in trained)
    assert {value.dtype for value in trained.values()} == {torch.float32}
    frozen = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    assert {value.dtype for value in frozen.values()} == {dtype}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(predictor.logits(TEXTS), torch.tensor([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(torch.equal(model.get_parameter(name), value) for name, value in frozen.items())
    learned = predictor.probabilities(TEXTS)
    assert (learned.diagonal() > 0.8).all()
    classifier_adapters.merge_adapters(model)
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert {value.dtype for value in model.parameters()} == {dtype}
    predictor.save(tmp_path)
    loaded = task_predictor.load(str(tmp_path))
    assert {value.dtype for value in loaded.model.parameters()} == {dtype}, "the number format is kept"
    torch.testing.assert_close(loaded.probabilities(TEXTS), learned, atol=0.05 if dtype == torch.bfloat16 else 1e-4, rtol=0)


def test_parameters_are_counted_without_reading_weights(tiny_t5: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((Path(tiny_t5) / "config.json").read_text())
    model = task_predictor.from_t5(tiny_t5, ["remove", "sketch"], 16).model
    assert classifier_adapters.count_parameters(str(tmp_path)) == sum(p.numel() for p in model.transformer.parameters())
