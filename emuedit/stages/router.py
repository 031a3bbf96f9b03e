"""Stage `router`: train the task predictor, a T5 and a linear classifier. A killed run resumes after the last finished epoch.

In: `data/instructions`, the world's T5. Out: `models/router`: the T5 as transformers saves it, `ngrams.safetensors` and
`ngrams.json` (the linear classifier), `metrics.json`, `known_instructions.json` (some of the texts, which new tasks are
distinguished from), `known_features.safetensors` (their features, from the trained T5), `out_of_fold.parquet`, `summary.json`;
`logs/router`.

The instructions are split into folds by their wording. For each fold, both classifiers are trained on the other folds and
predict it; these held-out predictions are used to reassign tasks (`dataset`), to fit the weights and the refusal threshold, and
to compute the metrics. Then the published classifiers are trained on all instructions.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from emuedit import config
from emuedit.data.atomic_file import replacing
from emuedit.data.dependencies import find_file, work_key
from emuedit.data.publish import Summary, publish, publish_logs, read_folder, scratch_folder
from emuedit.data.records import Instruction
from emuedit.predictor import classifier_adapters, new_tasks, task_predictor
from emuedit.predictor.calibration import fit_weights, measure, refusal_threshold
from emuedit.predictor.classifier_adapters import AdapterSettings
from emuedit.predictor.cross_fitting import Example, fold_of, label_instructions, one_fold_tasks, write_out_of_fold
from emuedit.predictor.ngram_classifier import NgramClassifier
from emuedit.predictor.non_instructions import NON_INSTRUCTIONS, load_non_instructions
from emuedit.predictor.task_predictor import NO_EDIT, TaskPredictor
from emuedit.predictor.wording_noise import WordingNoise, gibberish, vary
from emuedit.progress import Progress
from emuedit.runtime import Device, Runtime, rng, sample, seed_for
from emuedit.stages import batch_divisor, stage_main
from emuedit.tasks import TASKS
from emuedit.tracking import Tracker
from emuedit.training.optim.lr_schedule import LrSchedule
from emuedit.training.optim.optimization import STATE_FILE, Optimization

IN, OUT = "data/instructions", "models/router"
HEADLINE = (
    "trained on {trained} instructions; {correct} of them right when their wording was held out, "
    "calibration error {calibration_error_percent} %"
)
LARGE = 1_000_000_000
"""From this many parameters on, `lora: auto` trains adapters. Ours: full training of fewer fits into 16 GiB."""


class RouterError(ValueError):
    """Raised for instructions that no task predictor can be trained on, and for settings that do not go together."""


class RouterParams(config.Params):
    """Params of the stage."""

    world: config.World
    """The world; only its `t5` is used."""
    epochs: int = Field(ge=1)
    """Passes over the instructions."""
    lr: float = Field(gt=0)
    """Highest learning rate; it falls linearly to zero. For a trained T5: 1.0e-4, with adapters 5.0e-4."""
    folds: int = Field(3, ge=2)
    """Folds of wordings for cross-fitting; each costs a training on the others."""
    noise: WordingNoise = WordingNoise()
    """Typing errors, left-out words and courtesies, drawn again in each epoch."""
    non_instructions: str = NON_INSTRUCTIONS
    """File of texts to refuse, see `emuedit/predictor/non_instructions.py`; its list `fit` is used, and some of the captions."""
    non_instruction_repeats: int = Field(2, ge=1)
    """How often each of them is seen per epoch, if that makes at most half as many texts as instructions; else a sample."""
    max_refused: float = Field(0.03, ge=0, lt=1)
    """Maximum share of the instructions, predicted by models without their wording, below the published refusal threshold."""
    lora: Literal["auto", "on", "off"] = "auto"
    """Train low-rank adapters instead of all weights; auto: for a T5 of 1e9 parameters or more."""
    adapters: AdapterSettings = AdapterSettings()
    """Settings of the adapters."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of T5's weights, in training and in the saved model; auto: bfloat16 with adapters, else float32. T5
    overflows in float16."""
    device: Device = "auto"
    """Where it trains: auto, cpu, cuda or mps."""
    batch_size: int = Field(128, ge=1)
    """Instructions per step."""
    warmup_steps: int = Field(30, ge=1)
    """Steps in which the rate rises, at most a tenth of all."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay of AdamW."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    max_tokens: int = Field(32, ge=4)
    """Longest instruction in tokens that T5 reads, in training and in use; a longer one is cut without a warning."""
    seed: int = Field(0, ge=0)
    """Seed of the head, the order, the noise and the dropout."""


def run(params: RouterParams, root: Path) -> Summary:
    """Train a model per fold and the published one, each epoch saved in scratch; measure; publish to `models/router`."""
    base = config.resolve_path(params.world.t5, root)
    texts_file = find_file(params.non_instructions, root)
    recorded = params.model_dump(mode="json", exclude={"world", "device"}) | {"t5": params.world.t5}
    scratch = scratch_folder(root, "router", work_key("router", recorded, root, base, str(texts_file)))
    instructions = label_instructions(read_folder(root / IN, Instruction), params.folds)
    captions = {row.source_caption for row in read_folder(root / IN, Instruction)}  # again: all records need not be in memory
    present = {example.label for example in instructions}
    tasks = [task.name for task in TASKS if task.name in present]
    folds = {example.fold for example in instructions}
    one_fold = one_fold_tasks(instructions)
    unmeasured = {example.text for example in instructions if example.label in one_fold}
    if len(tasks) < 2 or len(folds) < params.folds or all(example.text in unmeasured for example in instructions):
        raise RouterError(
            f"want instructions of two tasks, wordings of a task in two folds, and wordings for {params.folds} folds; got {tasks}"
            f", wordings in a single fold of {one_fold}, and wordings for {len(folds)}; add captions or wordings"
        )
    if one_fold:
        print(
            f"router: want wordings of every task in two folds or more, got a single one for {', '.join(one_fold)}; they are "
            "left out of calibration, metrics and out-of-fold predictions; write more different wordings of them",
            flush=True,
        )
    others = [text for texts in load_non_instructions(texts_file, "fit").values() for text in texts]
    others += sample(sorted(captions), len(others) // 4, rng("router", "captions"))
    examples = [*instructions, *(Example(text, NO_EDIT, fold_of(text, params.folds)) for text in others)]
    with Tracker(scratch, "router", recorded) as tracker:
        training = PredictorTraining(tasks, base, params, scratch, tracker)
        experts = torch.zeros(2, len(examples), len(tasks) + 1)
        for fold in range(params.folds):
            inside = [row for row, example in enumerate(examples) if example.fold == fold]
            experts[0, inside] = training.fold_logits(fold, examples)
            ngrams = fit_ngrams([example for example in examples if example.fold != fold], tasks)
            experts[1, inside] = ngrams.logits([examples[row].text for row in inside])
        predictor = training.train(examples)
        predictor.ngrams = fit_ngrams(examples, tasks)
        measured = [row for row, example in enumerate(examples) if example.text not in unmeasured]
        metrics = cross_fit(predictor, experts[:, measured], [examples[row] for row in measured], params, scratch)
        tracker.log(params.epochs, **{name: value for name, value in metrics.items() if isinstance(value, float)})
    predictor.save(scratch)
    new_tasks.write_known(scratch, [example.text for example in examples], [example.label for example in examples])
    new_tasks.write_known_features(scratch, predictor.features, params.noise)
    (scratch / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    counts = {
        "trained": len(instructions),
        "correct": round(metrics["accuracy"] * metrics["n"]),
        "calibration_error_percent": round(100 * metrics["calibration_error"]),
    }
    publish_logs(scratch, root, "router")
    return publish(scratch, root / OUT, "router", recorded, counts)


@dataclass(frozen=True)
class PredictorTraining:
    """What the trainings of the predictor share: of a T5 for each fold, and of the published one."""

    tasks: list[str]
    base: str
    """Folder or hub id of the T5."""
    params: RouterParams
    scratch: Path
    tracker: Tracker

    def fold_logits(self, fold: int, examples: list[Example]) -> Tensor:
        """T5's logits [n, K + 1] for the n examples of a fold, by a model that was trained on the others; kept in scratch."""
        file = self.scratch / f".fold-{fold}.npy"
        if not file.exists():
            predictor = self.train([example for example in examples if example.fold != fold], fold)
            logits = predictor.all_logits([example.text for example in examples if example.fold == fold])
            with replacing(file) as partial:
                np.save(partial, logits.numpy())
            self._state_file(fold).unlink(missing_ok=True)
        return torch.from_numpy(np.load(file))

    def train(self, examples: list[Example], left_out: int | None = None) -> TaskPredictor:
        """A predictor trained on these examples, with the weights of `base` merged with the adapters, if there are any.

        left_out: the fold whose examples are missing; None: no fold is missing.
        """
        params = self.params
        runtime = Runtime.choose(params.device, "float32")
        uses_lora, dtype = choose_precision(params, self.base)
        predictor = task_predictor.from_t5(self.base, self.tasks, params.max_tokens, runtime.device, params.seed, dtype)
        if uses_lora:
            with torch.random.fork_rng([]):
                torch.manual_seed(seed_for("router", "adapters", params.seed))
                classifier_adapters.add_adapters(predictor.model, params.adapters)
        if batch_divisor() > 1:  # smaller passes would draw another dropout
            print("router: ran out of memory; activations are now computed again where they are needed", flush=True)
            predictor.model.activation_checkpointing_enable({"use_reentrant": False})
        self._fit(predictor, examples, left_out)
        if uses_lora:
            classifier_adapters.merge_adapters(predictor.model)
        return predictor

    def _fit(self, predictor: TaskPredictor, examples: list[Example], left_out: int | None) -> None:
        """Cross-entropy of the class. Order, noise and dropout depend on (seed, epoch); the state is saved after every epoch."""
        params, loss_name = self.params, "loss" if left_out is None else f"loss_fold_{left_out}"
        model, device = predictor.model, predictor.model.device
        class_of = {label: i for i, label in enumerate(predictor.labels)}
        instructions = [example for example in examples if example.label != NO_EDIT]
        others = [example for example in examples if example.label == NO_EDIT] * params.non_instruction_repeats
        n_others = min(len(others), len(instructions) // 2)
        n_gibberish = n_others // 4
        per_epoch = -(-(len(instructions) + n_others + n_gibberish) // params.batch_size)
        n_steps = params.epochs * per_epoch
        schedule = LrSchedule(n_steps, params.lr, min(params.warmup_steps, n_steps // 10), decay_share=1.0)
        optimization = Optimization(model, schedule, weight_decay=params.weight_decay, max_grad_norm=params.max_grad_norm)
        state = self._state_file(left_out)
        optimization.resume(state)
        with Progress(loss_name.replace("loss", "router"), n_steps, "step", optimization.step) as progress:
            for epoch in range(optimization.step // per_epoch, params.epochs):
                random = rng("router", "order", params.seed, epoch)
                seen = [*instructions, *sample(others, n_others, random)]
                rows = [(vary(example.text, params.noise, random), class_of[example.label]) for example in seen]
                rows += [(gibberish(random), class_of[NO_EDIT]) for _ in range(n_gibberish)]
                order = random.permutation(len(rows)).tolist()
                losses: list[Tensor] = []
                model.train()
                with torch.random.fork_rng([device] if device.type == "cuda" else []):
                    torch.manual_seed(seed_for("router", "dropout", params.seed, epoch))
                    for start in range(0, len(order), params.batch_size):
                        batch = [rows[i] for i in order[start : start + params.batch_size]]
                        labels = torch.tensor([label for _, label in batch], device=device)
                        loss = F.cross_entropy(predictor.logits([text for text, _ in batch]), labels)
                        loss.backward()
                        optimization.update()
                        losses.append(loss.detach())
                        progress.advance()
                mean_loss = float(torch.stack(losses).mean())
                if not torch.isfinite(torch.tensor(mean_loss)):
                    raise RouterError(f"want a finite loss, got {mean_loss} in epoch {epoch}; lower router.lr in params.yaml")
                self.tracker.log(epoch, **{loss_name: mean_loss})
                optimization.save(state)

    def _state_file(self, left_out: int | None) -> Path:
        return self.scratch / (STATE_FILE if left_out is None else f"{STATE_FILE}.fold-{left_out}")


def fit_ngrams(examples: Sequence[Example], tasks: Sequence[str]) -> NgramClassifier:
    """The linear classifier of the K + 1 classes, fitted to these examples."""
    label_of = {label: k for k, label in enumerate((*tasks, NO_EDIT))}
    return NgramClassifier.fit([example.text for example in examples], [label_of[e.label] for e in examples], len(label_of))


def choose_precision(params: RouterParams, base: str) -> tuple[bool, torch.dtype]:
    """Whether adapters are trained, and the number format of T5's weights, with 'auto' resolved.

    Raises RouterError for full training in bfloat16, whose steps would be lost in rounding.
    """
    uses_lora = params.lora == "on" or (params.lora == "auto" and classifier_adapters.count_parameters(base) >= LARGE)
    dtype = ("bfloat16" if uses_lora else "float32") if params.dtype == "auto" else params.dtype
    if dtype == "bfloat16" and not uses_lora:
        raise RouterError("want router.lora on with router.dtype bfloat16, got all weights trained; use float32 or lora: on")
    return uses_lora, torch.bfloat16 if dtype == "bfloat16" else torch.float32


def cross_fit(
    predictor: TaskPredictor, experts: Tensor, examples: list[Example], params: RouterParams, scratch: Path
) -> dict[str, Any]:
    """Calibrate the predictor with the logits [2, N, K + 1] of the fold models, write their predictions, measure them.

    The probabilities and refusals of a fold have the weights and the refusal threshold of the other folds, so nothing is measured
    on what it was fitted to. The published weights and threshold are fitted to all folds.
    """
    labels = torch.tensor([predictor.labels.index(example.label) for example in examples])
    folds = torch.tensor([example.fold for example in examples])
    is_instruction = labels < (n_tasks := len(predictor.tasks))  # `NO_EDIT` is the last class
    measured, refused = torch.zeros_like(experts[0]), torch.zeros_like(is_instruction)
    for fold in range(params.folds):
        inside = folds == fold
        fold_p = combine(experts, fit_weights(experts[:, ~inside], labels[~inside]))
        support = fold_p[:, :n_tasks].sum(-1)
        refused_below = refusal_threshold(support[~inside & is_instruction], params.max_refused)
        measured[inside], refused[inside] = fold_p[inside], support[inside] < refused_below
    p = combine(experts, weights := fit_weights(experts, labels))[:, :n_tasks]
    min_support = refusal_threshold(p.sum(-1)[is_instruction], params.max_refused)
    predictor.calibrate(1 / weights[0], min_support, weights[1])
    texts, row_folds = zip(*((example.text, example.fold) for example in examples if example.label != NO_EDIT), strict=True)
    write_out_of_fold(scratch, texts, row_folds, predictor.tasks, p[is_instruction].double().numpy())
    metrics = measure(measured[is_instruction][:, :n_tasks], labels[is_instruction], predictor.tasks)
    return metrics | {
        "temperature": predictor.temperature,
        "ngram_weight": predictor.ngram_weight,
        "min_support": min_support,
        "refused_instructions": float(refused[is_instruction].float().mean()),
        "refused_non_instructions": float(refused[~is_instruction].float().mean()),
    }


def combine(experts: Tensor, weights: Sequence[float]) -> Tensor:
    """Probabilities [N, L] of the product of experts: softmax of the weighted sum of their logits [E, N, L]."""
    return torch.einsum("e,enl->nl", torch.tensor(weights), experts).softmax(-1)


if __name__ == "__main__":
    stage_main("router")
