"""The task predictor: a T5 that classifies an instruction by the task it asks for.

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

T5 = model_sources.ModelKind("a transformers T5", "config.json", "model_type", ("t5", "mt5", "umt5"))
_MARKER = "router_tasks"  # in config.json: the labels of this classifier are tasks


@dataclass(frozen=True)
class TaskPrediction:
    """The two most probable tasks of an instruction, with probabilities in [0, 1]. Where they are close, ask the user."""

    task: str
    probability: float
    second: str | None
    """None where only one task may be chosen."""
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
        end_token = self.tokenizer.eos_token
        tokens = self.tokenizer(
            [text.replace(end_token, " ") for text in texts],  # T5 would take a typed end token for the end of the text
            padding=True,
            truncation=True,
            return_tensors="pt",
        ).to(self.model.device)
        logits: Tensor = self.model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).logits
        return logits.float()

    @torch.inference_mode()
    def probabilities(self, texts: Sequence[str], batch: int = 64) -> Tensor:
        """float32 [B, K] on the CPU; rows sum to 1."""
        self.model.eval()
        parts = [self.logits(texts[i : i + batch]).softmax(-1).cpu() for i in range(0, len(texts), batch)]
        return torch.cat(parts) if parts else torch.zeros(0, len(self.tasks))

    def predict(self, texts: Sequence[str], among: Sequence[str] | None = None) -> list[TaskPrediction]:
        """A prediction for every instruction, out of the tasks that are both known and `among` the given ones; None: any.

        Probabilities stay those over all K tasks: that of a task is low where the instruction asks for one that is left out.
        Raises ValueError where no task is left.
        """
        names = self.tasks
        columns = [k for k, name in enumerate(names) if among is None or name in among]
        if not columns:
            raise ValueError(
                f"want a task that the task predictor knows ({', '.join(names)}), got an editor of {', '.join(among or ())}; "
                "name the task, or train both on the same tasks"
            )
        values, indices = self.probabilities(texts)[:, columns].topk(min(2, len(columns)))
        ranked = [
            [(names[columns[i]], p) for p, i in zip(*row, strict=True)]
            for row in zip(values.tolist(), indices.tolist(), strict=True)
        ]
        return [TaskPrediction(*first, *(rest[0] if rest else (None, 0.0))) for first, *rest in ranked]

    def save(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and the tokenizer's files, as transformers saves a classifier."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        for file in Path(folder).glob("*.safetensors"):
            file.chmod(0o644)  # safetensors writes files that only their owner can read


def from_t5(name_or_path: str, tasks: Sequence[str], max_tokens: int, device: str = "cpu", seed: int = 0) -> TaskPredictor:
    """A predictor to be trained: a T5 folder or hub id (such as `google/flan-t5-xl`) with a new head for these tasks.

    Raises ValueError for fewer than two tasks or one named twice, and what `read_manifest` raises for a wrong folder.
    """
    if len(tasks) < 2 or len(set(tasks)) != len(tasks):
        raise ValueError(f"want two or more different tasks to tell apart, got {list(tasks)}")
    model_sources.read_manifest(name_or_path, T5)
    transformers = model_sources.import_library("transformers")
    with torch.random.fork_rng([]):
        torch.manual_seed(seed_for("router", "head", seed))
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            name_or_path,
            id2label=dict(enumerate(tasks)),
            label2id={task: i for i, task in enumerate(tasks)},
            problem_type="single_label_classification",
            dtype=torch.float32,
            use_safetensors=True,
        )
    setattr(model.config, _MARKER, True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(name_or_path, model_max_length=max_tokens)
    return TaskPredictor(model.to(device), tokenizer)


def load(name_or_path: str, device: str = "cpu") -> TaskPredictor:
    """A trained predictor from its folder or a hub id. Raises ValueError for a T5 that was not trained to be one."""
    manifest = model_sources.read_manifest(name_or_path, T5)
    if not manifest.get(_MARKER):
        raise ValueError(f"want a task predictor, got {name_or_path!r}, a T5 whose labels are not tasks; run the stage `router`")
    transformers = model_sources.import_library("transformers")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        name_or_path, dtype=torch.float32, use_safetensors=True
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(name_or_path)
    return TaskPredictor(model.to(device).requires_grad_(False).eval(), tokenizer)
