"""The task predictor: a T5 that classifies an instruction by the task it asks for, or refuses it.

Emu Edit fine-tunes a Flan-T5-XL for this (arXiv 2311.10089); its recipe is not published. Ours is T5's own sequence classifier
(transformers' T5ForSequenceClassification: the decoder's last state through a two-layer head) in the standard folder, with one
more class for texts that ask for no edit. Probabilities are calibrated by a temperature (`editor/calibration.py`).
Shapes: B instructions, T tokens, K tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emuedit.editor import new_tasks
from emuedit.editor.new_tasks import NewTasks
from emuedit.models import model_sources
from emuedit.runtime import seed_for

T5 = model_sources.ModelKind("a transformers T5", "config.json", "model_type", ("t5", "mt5", "umt5"))
NO_EDIT = "no_edit"
"""Name of the class of texts that ask for no edit."""
MIN_READING = 0.2
"""A second task that is at least as probable is a second reading of the instruction. Ours."""
N_ALTERNATIVES = 2
_MARKER = "router_tasks"  # in config.json: the labels of this classifier are tasks
_TEMPERATURE, _MIN_SUPPORT = "router_temperature", "router_min_support"


@dataclass(frozen=True)
class TaskPrediction:
    """The most probable task of an instruction, and what else it may mean. Probabilities lie in [0, 1]."""

    task: str
    probability: float
    alternatives: tuple[tuple[str, float], ...] = ()
    """The next most probable tasks with their probabilities, at most `N_ALTERNATIVES`."""
    refused: bool = False
    """Whether the text asks for none of the tasks; `task` is then only the nearest one."""

    @property
    def readings(self) -> tuple[tuple[str, float], ...]:
        """The tasks that the instruction may mean, the likelier first: one, or two where it is ambiguous. None if refused."""
        if self.refused:
            return ()
        second = tuple(other for other in self.alternatives[:1] if other[1] >= MIN_READING)
        return ((self.task, self.probability), *second)

    @property
    def ambiguous(self) -> bool:
        """Whether the instruction has two readings; the user should choose."""
        return len(self.readings) > 1

    def explain_refusal(self, text: str) -> str:
        """Why this text was not carried out: the nearest tasks, and what to do."""
        nearest = ", ".join(f"{task} ({p:.0%})" for task, p in ((self.task, self.probability), *self.alternatives))
        return (
            f"want an instruction to edit the picture, got {text!r}; the nearest tasks are {nearest}. Use other words, or name "
            "the task (--task on the command line, `tasks` in Python) to carry it out all the same"
        )


class TaskPredictor:
    """A T5 classifier with its tokenizer; the labels in its config are the names of tasks, and `NO_EDIT`."""

    def __init__(self, model: Any, tokenizer: Any, known_instructions: Mapping[str, Sequence[str]] | None = None) -> None:
        """known_instructions: label -> texts that it was trained on, which new tasks are distinguished from (`add_task`)."""
        self.model, self.tokenizer, self.known_instructions = model, tokenizer, dict(known_instructions or {})
        self._new_instructions: dict[str, tuple[str, ...]] = {}
        self._classifier: NewTasks | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of all classes, in the order of its outputs: the K tasks and, if it was trained to refuse, `NO_EDIT`."""
        names = self.model.config.id2label
        return tuple(names[i] for i in range(len(names)))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The K tasks it knows, in the order of its outputs; at least two."""
        return tuple(name for name in self.labels if name != NO_EDIT)

    @property
    def new_tasks(self) -> tuple[str, ...]:
        """Tasks that `add_task` brought."""
        return tuple(self._new_instructions)

    def can_add(self, instructions: Sequence[str]) -> bool:
        """Whether `add_task` can tell these instructions from `known_instructions`: there are some of both."""
        return bool(instructions and self.known_instructions)

    def add_task(self, name: str, instructions: Sequence[str]) -> None:
        """Add a task that it was not trained on, known by the instructions of its examples. T5 stays as it is.

        Raises ValueError for a name that is taken, without instructions, and for a predictor without `known_instructions`.
        """
        if name in self.labels or name in self._new_instructions:
            raise ValueError(f"want a new name, got {name!r}, which the task predictor knows")
        if not self.can_add(instructions):
            lacking = "known_instructions.json in its folder; run the stage router again" if instructions else "instructions"
            raise ValueError(f"the task predictor cannot learn to know {name!r} without {lacking}; name the task when editing")
        self._new_instructions[name] = tuple(instructions)
        self._classifier = None

    def remove_task(self, name: str) -> None:
        """Take a task that `add_task` brought out again; a name that it does not know is no error."""
        self._new_instructions.pop(name, None)
        self._classifier = None

    @property
    def temperature(self) -> float:
        """Logits are divided by it before the softmax; 1 before calibration."""
        return float(getattr(self.model.config, _TEMPERATURE, 1.0))

    @property
    def min_support(self) -> float:
        """A text is refused where the probabilities of all tasks add up to less; 0: nothing is refused."""
        return float(getattr(self.model.config, _MIN_SUPPORT, 0.0))

    def calibrate(self, temperature: float, min_support: float) -> None:
        """Set temperature (above 0) and refusal threshold (in [0, 1]); `save` keeps them in config.json."""
        setattr(self.model.config, _TEMPERATURE, float(temperature))
        setattr(self.model.config, _MIN_SUPPORT, float(min_support))

    def logits(self, texts: Sequence[str]) -> Tensor:
        """float32 [B, labels] before temperature and softmax, on the model's device. Texts of too many tokens are cut."""
        logits: Tensor = self.model(**self._tokenize(texts)).logits
        return logits.float()

    def _tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """input_ids and attention_mask, [B, T] on the model's device."""
        end_token = self.tokenizer.eos_token
        tokens = self.tokenizer(
            [text.replace(end_token, " ") for text in texts],  # T5 would take a typed end token for the end of the text
            padding=True,
            truncation=True,
            return_tensors="pt",
        ).to(self.model.device)
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}

    @torch.inference_mode()
    def all_logits(self, texts: Sequence[str], batch: int = 64) -> Tensor:
        """float32 [B, labels] on the CPU, `batch` texts at a time, without dropout."""
        self.model.eval()
        parts = [self.logits(texts[i : i + batch]).cpu() for i in range(0, len(texts), batch)]
        return torch.cat(parts) if parts else torch.zeros(0, len(self.labels))

    def probabilities(self, texts: Sequence[str], batch: int = 64) -> Tensor:
        """float32 [B, K] on the CPU, calibrated. What is missing to 1 in a row is the probability that no task is meant."""
        every_class = (self.all_logits(texts, batch) / self.temperature).softmax(-1)
        return every_class[:, [k for k, name in enumerate(self.labels) if name != NO_EDIT]]

    @torch.inference_mode()
    def features(self, texts: Sequence[str], batch: int = 64) -> Tensor:
        """float32 [B, D] on the CPU: T5's encoder, mean over the tokens."""
        self.model.eval()
        parts = []
        for start in range(0, len(texts), batch):
            tokens = self._tokenize(texts[start : start + batch])
            hidden = self.model.transformer.encoder(**tokens).last_hidden_state.float()  # [b, T, D]
            mask = tokens["attention_mask"][..., None]
            parts.append(((hidden * mask).sum(1) / mask.sum(1)).cpu())
        return torch.cat(parts)

    def predict(self, texts: Sequence[str], among: Sequence[str] | None = None) -> list[TaskPrediction]:
        """A prediction for every instruction, out of the tasks that are both known and `among` the given ones; None: any.

        Probabilities stay those over all K tasks and the added ones: where the instruction asks for a task that is left out,
        those of the others are low, and it is refused. Empty texts are refused always. Raises ValueError where no task is left.
        """
        names = (*self.tasks, *self._new_instructions)
        columns = [k for k, name in enumerate(names) if among is None or name in among]
        if not columns:
            raise ValueError(
                f"want a task that the task predictor knows ({', '.join(names)}), got an editor of {', '.join(among or ())}; "
                "name the task, or train both on the same tasks"
            )
        if not texts:
            return []
        chosen = self._with_new_tasks(texts, self.probabilities(texts))[:, columns]
        values, indices = chosen.topk(min(1 + N_ALTERNATIVES, len(columns)))
        predictions = []
        for text, support, row, ranks in zip(texts, chosen.sum(-1).tolist(), values.tolist(), indices.tolist(), strict=True):
            first, *others = [(names[columns[i]], p) for p, i in zip(row, ranks, strict=True)]
            refused = not text.strip() or support < self.min_support
            predictions.append(TaskPrediction(*first, tuple(others), refused))
        return predictions

    def _with_new_tasks(self, texts: Sequence[str], p: Tensor) -> Tensor:
        """Probabilities p [B, K] of the trained tasks -> [B, K + M] with those of the added ones."""
        if not self._new_instructions:
            return p
        if self._classifier is None:
            self._classifier = NewTasks.fit(self._new_instructions, self.known_instructions, self.features)
        share = self._classifier.probabilities(self.features(texts))  # [B, 1 + M]
        return torch.cat([p * share[:, :1], share[:, 1:]], 1)

    def save(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and the tokenizer's files, as transformers saves a classifier."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        for file in Path(folder).glob("*.safetensors"):
            file.chmod(0o644)  # safetensors writes files that only their owner can read


def from_t5(
    name_or_path: str,
    tasks: Sequence[str],
    max_tokens: int,
    device: str = "cpu",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> TaskPredictor:
    """A predictor to be trained: a T5 folder or hub id (such as `google/flan-t5-xl`) with a new head for these tasks.

    `dtype`: the number format of T5's weights; the head is float32. Raises ValueError for fewer than two tasks or one named
    twice, and what `read_manifest` raises for a wrong folder.
    """
    if len(tasks) < 2 or len(set(tasks)) != len(tasks):
        raise ValueError(f"want two or more different tasks to tell apart, got {list(tasks)}")
    model_sources.read_manifest(name_or_path, T5)
    transformers = model_sources.import_library("transformers")
    labels = [*tasks, NO_EDIT]
    name, revision = model_sources.split_revision(name_or_path)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed_for("router", "head", seed))
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            name,
            revision=revision,
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
            problem_type="single_label_classification",
            dtype=dtype,
            use_safetensors=True,
        )
    setattr(model.config, _MARKER, True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(name, revision=revision, model_max_length=max_tokens)
    return TaskPredictor(model.to(device), tokenizer)


def load(name_or_path: str, device: str = "cpu") -> TaskPredictor:
    """A trained predictor from its folder or a hub id, in the number format in which it was saved.

    Raises ValueError for a T5 that was not trained to be one.
    """
    manifest = model_sources.read_manifest(name_or_path, T5)
    if not manifest.get(_MARKER):
        raise ValueError(f"want a task predictor, got {name_or_path!r}, a T5 whose labels are not tasks; run the stage `router`")
    transformers = model_sources.import_library("transformers")
    name, revision = model_sources.split_revision(name_or_path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        name, revision=revision, dtype="auto", use_safetensors=True
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(name, revision=revision)
    model = model.to(device).requires_grad_(False).eval()
    return TaskPredictor(model, tokenizer, new_tasks.read_known(Path(name_or_path)))
