"""The task predictor: it classifies instructions by task and can refuse a text.

Emu Edit fine-tunes a Flan-T5-XL for this (arXiv 2311.10089); its recipe is not published. We use transformers'
T5ForSequenceClassification (the decoder's last state through a two-layer head) in the standard folder layout, with an extra class
for texts that are not edit instructions. A linear classifier of letter n-grams (`predictor/ngram_classifier.py`) is a second
expert. The probabilities are softmax(T5's logits / temperature + weight * the other's logits), a product of experts; temperature
and weight are calibrated (`predictor/calibration.py`).
Shapes: B instructions, T tokens, K tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emuedit.models import model_sources
from emuedit.predictor import new_tasks, ngram_classifier
from emuedit.predictor.new_tasks import KnownFeatures, NewTasks
from emuedit.predictor.ngram_classifier import NgramClassifier
from emuedit.runtime import seed_for

T5 = model_sources.ModelKind("a transformers T5", "config.json", "model_type", ("t5", "mt5", "umt5"))
NO_EDIT = "no_edit"
"""Class of texts that are not edit instructions."""
MIN_READING = 0.2
"""From this probability on, a second task makes the instruction ambiguous. Ours."""
MIN_NEW_SHARE = 0.5
"""From this probability on, added tasks count as support of a text. Ours: lower, more texts are accepted that are no edits."""
N_ALTERNATIVES = 2
MAX_QUOTED_CHARS = 120
"""Length at which a text is cut in the message of a refusal."""
_MARKER = "router_tasks"  # in config.json: marks a classifier whose labels are tasks
_TEMPERATURE, _MIN_SUPPORT, _NGRAM_WEIGHT = "router_temperature", "router_min_support", "router_ngram_weight"


@dataclass(frozen=True)
class TaskPrediction:
    """The most probable task of an instruction, and alternatives. Probabilities are in [0, 1]."""

    task: str
    probability: float
    alternatives: tuple[tuple[str, float], ...] = ()
    """The next most probable tasks with their probabilities, at most `N_ALTERNATIVES`."""
    refused: bool = False
    """Whether the text matches none of the tasks; `task` is then only the nearest one."""

    @property
    def readings(self) -> tuple[tuple[str, float], ...]:
        """Possible tasks, most probable first: one, or two if the instruction is ambiguous. Empty if refused."""
        if self.refused:
            return ()
        second = tuple(other for other in self.alternatives[:1] if other[1] >= MIN_READING)
        return ((self.task, self.probability), *second)

    @property
    def ambiguous(self) -> bool:
        """Whether the instruction has two readings; the user should choose."""
        return len(self.readings) > 1

    def explain_refusal(self, text: str) -> str:
        """Why this text was refused: the nearest tasks, and what to do."""
        nearest = ", ".join(f"{task} ({p:.0%})" for task, p in ((self.task, self.probability), *self.alternatives))
        shortened = text if len(text) <= MAX_QUOTED_CHARS else f"{text[:MAX_QUOTED_CHARS]}..."
        return (
            f"want an instruction to edit the image, got {shortened!r}; the nearest tasks are {nearest}. Use other words, or "
            "name the task (--task on the command line, `tasks` in Python, the column `task` of a request) to edit anyway, or, "
            "for a task that the editor does not have, teach it from examples with `emuedit learn`"
        )


class TaskPredictor:
    """A T5 classifier with its tokenizer; the labels in its config are task names and `NO_EDIT`."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        known_instructions: Mapping[str, Sequence[str]] | None = None,
        ngrams: NgramClassifier | None = None,
        known_features: KnownFeatures | None = None,
    ) -> None:
        """known_instructions: label -> training texts, from which new tasks are separated (`add_task`); ngrams: same labels.

        known_features: `features` of these texts and their variations; None: computed when needed.
        """
        self.model, self.tokenizer, self.known_instructions = model, tokenizer, dict(known_instructions or {})
        self.ngrams, self._known_features = ngrams, known_features
        self._new_instructions: dict[str, tuple[str, ...]] = {}
        self._classifier: NewTasks | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of all classes, in the order of its outputs: the K tasks and, if it was trained to refuse, `NO_EDIT`."""
        names = self.model.config.id2label
        return tuple(names[i] for i in range(len(names)))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The K trained tasks, in the order of its outputs; at least two."""
        return tuple(name for name in self.labels if name != NO_EDIT)

    @property
    def new_tasks(self) -> tuple[str, ...]:
        """Tasks added by `add_task`."""
        return tuple(self._new_instructions)

    def can_add(self, instructions: Sequence[str]) -> bool:
        """Whether `add_task` can be fitted: neither `instructions` nor `known_instructions` is empty."""
        return bool(instructions and self.known_instructions)

    def add_task(self, name: str, instructions: Sequence[str]) -> None:
        """Add an untrained task from its example instructions. T5 stays frozen.

        Raises ValueError for a name that exists, without instructions, and for a predictor without `known_instructions`.
        """
        if name in self.labels or name in self._new_instructions:
            raise ValueError(f"want a new name, got {name!r}, which the task predictor already has")
        if not self.can_add(instructions):
            lacking = "known_instructions.json in its folder; run the stage router again" if instructions else "instructions"
            raise ValueError(f"the task predictor cannot learn {name!r} without {lacking}; name the task when editing")
        self._new_instructions[name] = tuple(instructions)
        self._classifier = None

    def remove_task(self, name: str) -> None:
        """Remove a task that was added by `add_task`; unknown names are ignored."""
        self._new_instructions.pop(name, None)
        self._classifier = None

    @property
    def temperature(self) -> float:
        """T5's logits are divided by it before the softmax; 1 before calibration."""
        return float(getattr(self.model.config, _TEMPERATURE, 1.0))

    @property
    def ngram_weight(self) -> float:
        """The n-gram classifier's logits are multiplied by it before the softmax; 0 before calibration."""
        return float(getattr(self.model.config, _NGRAM_WEIGHT, 0.0))

    @property
    def min_support(self) -> float:
        """A text is refused if the sum of all task probabilities is below it; 0: nothing is refused."""
        return float(getattr(self.model.config, _MIN_SUPPORT, 0.0))

    def calibrate(self, temperature: float, min_support: float, ngram_weight: float = 0.0) -> None:
        """Set temperature (above 0), refusal threshold (in [0, 1]) and n-gram weight (0 or more), which `save` writes."""
        setattr(self.model.config, _TEMPERATURE, float(temperature))
        setattr(self.model.config, _MIN_SUPPORT, float(min_support))
        setattr(self.model.config, _NGRAM_WEIGHT, float(ngram_weight))

    def logits(self, texts: Sequence[str]) -> Tensor:
        """T5's, float32 [B, labels] before temperature and softmax, on the model's device. Long texts are truncated."""
        logits: Tensor = self.model(**self._tokenize(texts)).logits
        return logits.float()

    def _tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """input_ids and attention_mask, [B, T] on the model's device."""
        end_token = self.tokenizer.eos_token
        tokens = self.tokenizer(
            [text.replace(end_token, " ") for text in texts],  # T5 would treat a typed end token as the end of the text
            padding=True,
            truncation=True,
            return_tensors="pt",
        ).to(self.model.device)
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}

    @torch.inference_mode()
    def all_logits(self, texts: Sequence[str], batch: int = 64) -> Tensor:
        """T5's, float32 [B, labels] on the CPU, `batch` texts at a time, without dropout."""
        self.model.eval()
        parts = [self.logits(texts[i : i + batch]).cpu() for i in range(0, len(texts), batch)]
        return torch.cat(parts) if parts else torch.zeros(0, len(self.labels))

    def probabilities(self, texts: Sequence[str], batch: int = 64) -> Tensor:
        """float32 [B, K] on the CPU, calibrated. 1 minus the sum of a row is the probability of no task."""
        joint = self.all_logits(texts, batch) / self.temperature
        if self.ngrams is not None:
            joint += self.ngram_weight * self.ngrams.logits(texts)
        return joint.softmax(-1)[:, [k for k, name in enumerate(self.labels) if name != NO_EDIT]]

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
        """Predict the task of each instruction, restricted to the known tasks that are in `among`; None: all known tasks.

        Probabilities are over all tasks, including added ones: if the instruction asks for an excluded task, the others have low
        probabilities and it is refused. They are conditional on an instruction, with a sum of 1 over all tasks, except those of a
        refused text. Added tasks support a text only with a sum of at least MIN_NEW_SHARE. Empty texts are always refused. Raises
        ValueError if no task remains.
        """
        names = (*self.tasks, *self._new_instructions)
        columns = [k for k, name in enumerate(names) if among is None or name in among]
        if not columns:
            raise ValueError(
                f"want one of the task predictor's tasks ({', '.join(names)}), got an editor of {', '.join(among or ())}; "
                "name the task, or train both on the same tasks"
            )
        if not texts:
            return []
        p = self._with_new_tasks(texts, self.probabilities(texts))
        is_new = torch.tensor([k >= len(self.tasks) for k in columns])
        trained_share, new_share = ((p[:, columns] * part).sum(-1) for part in (~is_new, is_new))
        supported = trained_share + new_share * (new_share >= MIN_NEW_SHARE) >= self.min_support
        refused = [not (text.strip() and enough) for text, enough in zip(texts, supported.tolist(), strict=True)]
        p = torch.where(torch.tensor(refused)[:, None], p, p / p.sum(-1, keepdim=True))
        values, indices = p[:, columns].topk(min(1 + N_ALTERNATIVES, len(columns)))
        predictions = []
        for is_refused, row, ranks in zip(refused, values.tolist(), indices.tolist(), strict=True):
            first, *others = [(names[columns[i]], value) for value, i in zip(row, ranks, strict=True)]
            predictions.append(TaskPrediction(*first, tuple(others), is_refused))
        return predictions

    def _with_new_tasks(self, texts: Sequence[str], p: Tensor) -> Tensor:
        """Extend probabilities p [B, K] of the trained tasks by the added ones: [B, K + M]."""
        if not self._new_instructions:
            return p
        if self._classifier is None:
            instructions = self._new_instructions
            self._classifier = NewTasks.fit(instructions, self.known_instructions, self.features, self._known_features)
        share = self._classifier.probabilities(self.features(texts))  # [B, 1 + M]
        return torch.cat([p * share[:, :1], share[:, 1:]], 1)

    def save(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and the tokenizer's files, as transformers saves a classifier, and the n-grams."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.ngrams is not None:
            self.ngrams.save(Path(folder))
        for file in Path(folder).glob("*.safetensors"):
            file.chmod(0o644)  # safetensors files are readable only by their owner


def from_t5(
    name_or_path: str,
    tasks: Sequence[str],
    max_tokens: int,
    device: str = "cpu",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> TaskPredictor:
    """An untrained predictor: a T5 folder or hub id (such as `google/flan-t5-xl`) with a new head for these tasks.

    `dtype`: number format of T5's weights; the head is float32. Raises ValueError for fewer than two tasks or a duplicate, and
    what `read_manifest` raises for an invalid folder.
    """
    if len(tasks) < 2 or len(set(tasks)) != len(tasks):
        raise ValueError(f"want two or more different tasks to classify, got {list(tasks)}")
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

    Raises ValueError for a T5 that is not a task predictor.
    """
    manifest = model_sources.read_manifest(name_or_path, T5)
    if not manifest.get(_MARKER):
        raise ValueError(f"want a task predictor, got {name_or_path!r}, a T5 whose labels are not tasks; run the stage `router`")
    classes = ("AutoModelForSequenceClassification", "AutoTokenizer")
    model, tokenizer = model_sources.load_frozen(name_or_path, *classes, device, "auto")
    extra = (new_tasks.KNOWN_INSTRUCTIONS, new_tasks.KNOWN_FEATURES, ngram_classifier.WEIGHTS, ngram_classifier.VOCABULARY)
    is_local = model_sources.is_folder(name_or_path)
    folder = Path(name_or_path) if is_local else model_sources.download_snapshot(name_or_path, extra)
    known_instructions, known_features = new_tasks.read_known(folder), new_tasks.read_known_features(folder)
    predictor = TaskPredictor(model, tokenizer, known_instructions, ngram_classifier.load(folder), known_features)
    if predictor.ngram_weight and predictor.ngrams is None:
        raise ValueError(f"want {ngram_classifier.WEIGHTS} in {name_or_path}, got a folder without it; copy the whole folder")
    return predictor
