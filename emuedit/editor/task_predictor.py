"""The router: a T5 that reads an instruction and tells which task it asks for.

Emu Edit fine-tunes a Flan-T5-XL for this (arXiv 2311.10089); its recipe is not published. Ours is T5's own sequence classifier
(transformers' T5ForSequenceClassification: the decoder's last state through a two-layer head) in the standard folder.
Shapes: B instructions, T tokens, K tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emuedit.models import model_sources
from emuedit.runtime import seed_for

T5 = model_sources.Kind("a transformers T5", "config.json", "model_type", ("t5", "mt5", "umt5"))
_NAMED = "router_tasks"  # in config.json: this classifier's labels are tasks


@dataclass(frozen=True)
class TaskPrediction:
    """The two likeliest tasks of an instruction, with probabilities in [0, 1]. Close ones: ask which is meant."""

    task: str
    probability: float
    second: str
    second_probability: float


class TaskPredictor:
    """A T5 classifier with its tokenizer; the labels in its config are the names of tasks."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    @property
    def tasks(self) -> tuple[str, ...]:
        """The K tasks it knows, in the order of its outputs; at least two."""
        names = self.model.config.id2label
        return tuple(names[i] for i in range(len(names)))

    def logits(self, texts: Sequence[str]) -> Tensor:
        """[B, K] before the softmax, on the model's device. Texts of more tokens than the tokenizer's limit are cut."""
        end = self.tokenizer.eos_token
        read = self.tokenizer(
            [text.replace(end, " ") for text in texts],  # T5 reads the mark as the end even where somebody typed it
            padding=True,
            truncation=True,
            return_tensors="pt",
        ).to(self.model.device)
        found: Tensor = self.model(input_ids=read["input_ids"], attention_mask=read["attention_mask"]).logits
        return found.float()

    @torch.inference_mode()
    def probabilities(self, texts: Sequence[str], batch: int = 64) -> Tensor:
        """float32 [B, K] on the CPU, rows that sum to 1."""
        self.model.eval()
        parts = [self.logits(texts[i : i + batch]).softmax(-1).cpu() for i in range(0, len(texts), batch)]
        return torch.cat(parts) if parts else torch.zeros(0, len(self.tasks))

    def predict(self, texts: Sequence[str]) -> list[TaskPrediction]:
        """A guess for every instruction."""
        best, which = self.probabilities(texts).topk(2)
        names = self.tasks
        return [
            TaskPrediction(names[i], p, names[j], q) for (p, q), (i, j) in zip(best.tolist(), which.tolist(), strict=True)
        ]  # fmt: skip

    def save(self, folder: str | Path) -> None:
        """As transformers saves a classifier: config.json, model.safetensors, tokenizer files."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        for file in Path(folder).glob("*.safetensors"):
            file.chmod(0o644)  # safetensors writes for its owner alone


def start(name_or_path: str, tasks: Sequence[str], max_tokens: int, device: str = "cpu", seed: int = 0) -> TaskPredictor:
    """A router to be trained: a T5 folder or hub id (such as `google/flan-t5-xl`) with a new head for these tasks.

    Raises ValueError for fewer than two tasks or one named twice, and what `model_sources.manifest` raises for a wrong folder.
    """
    if len(tasks) < 2 or len(set(tasks)) != len(tasks):
        raise ValueError(f"want two or more different tasks to tell apart, got {list(tasks)}")
    model_sources.manifest(name_or_path, T5)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed_for("router", "head", seed))
        model = model_sources.library("transformers").AutoModelForSequenceClassification.from_pretrained(
            name_or_path,
            id2label=dict(enumerate(tasks)),
            label2id={task: i for i, task in enumerate(tasks)},
            problem_type="single_label_classification",
            dtype=torch.float32,
            use_safetensors=True,
        )
    setattr(model.config, _NAMED, True)
    tokenizer = model_sources.library("transformers").AutoTokenizer.from_pretrained(name_or_path, model_max_length=max_tokens)
    return TaskPredictor(model.to(device), tokenizer)


def load(name_or_path: str, device: str = "cpu") -> TaskPredictor:
    """A trained router from its folder or a hub id. Raises ValueError for a T5 that was not trained to be one."""
    found = model_sources.manifest(name_or_path, T5)
    if not found.get(_NAMED):
        raise ValueError(f"want a router, got {name_or_path!r}, a T5 whose labels are no tasks; run the station `router`")
    transformers = model_sources.library("transformers")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        name_or_path, dtype=torch.float32, use_safetensors=True
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(name_or_path)
    return TaskPredictor(model.to(device).requires_grad_(False).eval(), tokenizer)
