"""Station `inversion`: a few examples of a task the editor never met -> one task embedding; every other weight stays.

In: `models/editor`, the world's benchmark. Out: `models/inversion/<task>.safetensors` (a pack), `stats.jsonl`, `summary.json`.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from emuedit import config
from emuedit.data.publish import Summary, fingerprint, publish, read_summary, scratch_folder
from emuedit.editor import task_pack
from emuedit.editor.sampling import Editor
from emuedit.editor.sampling import load as load_editor
from emuedit.metrics import benchmark
from emuedit.models import image_tensors
from emuedit.models.text_to_image import TextCondition, use_unfused_attention_on_cpu
from emuedit.runtime import Runtime, rng
from emuedit.tracking import Tracker
from emuedit.training import loss
from emuedit.training.loss import Batch, Draws, Dropout, Weights

EDITOR, OUT = "models/editor", "models/inversion"


class InversionParams(config.Params):
    """Knobs of the station."""

    world: config.World
    """The world; only its `benchmark` matters here."""
    seed: int = Field(ge=0)
    """Seed of the order of examples, times, noise and dropout."""
    device: str
    """auto, cpu, cuda or mps."""
    dtype: Literal["float32", "bfloat16"]
    """Number format of the network's sums."""
    task: str = Field(min_length=1)
    """The task to learn, one that the benchmark knows and the editor does not."""
    n_examples: int = Field(ge=1)
    """Edits it is learned from."""
    n_held_out: int = Field(ge=1)
    """Further edits of the same split; their loss chooses the start and says when to stop."""
    steps: int = Field(ge=0)
    """Steps of the optimizer, at most."""
    batch: int = Field(ge=1)
    """Examples a step, drawn again and again."""
    lr: float = Field(gt=0)
    """Learning rate of Adam."""
    weights: Weights
    """What counts how much, as in training."""
    dropout: Dropout
    """How often a condition is left out, as in training."""
    eval_every_steps: int = Field(ge=1)
    """Steps between two looks at the held-out loss."""
    patience: int = Field(ge=1)
    """Looks without a better loss before it stops."""


@dataclass(frozen=True)
class Learned:
    """What inversion found."""

    v: Tensor  # [D_v]
    start: str
    """Where it began: a task of the editor, or `mean`."""
    steps: int
    """Steps made, those after the best one included."""
    loss_start: float
    loss: float
    """Held-out loss at the start and at the best step, which v is from."""


def starts(editor: Editor) -> dict[str, Tensor]:
    """Embeddings to begin with: every row of the table, and their mean; each [D_v]."""
    rows = editor.net.table.v.detach()
    return {"mean": rows.mean(0)} | dict(zip(editor.tasks, rows, strict=True))


def invert(editor: Editor, examples: Batch, held_out: Batch, params: InversionParams, log: Tracker | None = None) -> Learned:
    """The heart: min over v_new alone of the training loss (Eq. 3 of Emu Edit, arXiv 2311.10089), stopped on held-out edits.

    It starts from the row, or the mean of rows, that already serves the held-out edits best.
    """
    shape, n_times = tuple(held_out.target.shape), editor.frame.scheduler.config.num_train_timesteps
    fixed = loss.draw(shape, n_times, loss.NEVER, params.weights.late(0.0), "inversion", "held out")
    use_unfused_attention_on_cpu(editor.net.unet)

    def measure(v: Tensor) -> float:
        with torch.no_grad(), editor.autocast():
            return _loss(editor, held_out, fixed, v, params.weights).item()

    scores = {name: measure(v) for name, v in tqdm(starts(editor).items(), desc="zero-shot", unit="row")}
    start = min(scores, key=lambda name: scores[name])
    best, best_loss = starts(editor)[start].clone(), scores[start]
    v = best.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([v], lr=params.lr)
    waited = made = 0
    for step in tqdm(range(params.steps), desc=f"inversion {params.task}", unit="step"):
        chosen = rng("inversion", params.seed, step).integers(len(examples), size=params.batch)
        batch = _some(examples, torch.from_numpy(chosen).to(examples.target.device))
        shape, late = tuple(batch.target.shape), params.weights.late(step / params.steps)
        draws = loss.draw(shape, n_times, params.dropout, late, "inversion", params.seed, step)
        for group in optimizer.param_groups:  # a linear fall to a tenth: noise in the gradient is what is left to fight
            group["lr"] = params.lr * (1 - 0.9 * step / params.steps)
        with editor.autocast():
            value = _loss(editor, batch, draws, v, params.weights)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        made = step + 1
        if made % params.eval_every_steps == 0 or made == params.steps:
            held = measure(v)
            if log is not None:
                log.log(made, loss=value.item(), held_out=held)
            waited += 1
            if held < best_loss:
                best, best_loss, waited = v.detach().clone(), held, 0
            if waited >= params.patience:
                break
    return Learned(best, start, made, scores[start], best_loss)


def examples(editor: Editor, found: benchmark.Benchmark) -> Batch:
    """Edits with known results as a batch on the editor's device."""
    with editor.autocast():
        source, target = (editor.frame.encode(image_tensors.from_uint8(p).to(editor.device)) for p in (found.before, found.exact))
        text, null = editor.frame.encode_text(found.instructions), editor.frame.null_text(1)
    ids = tuple(str(i) for i in range(len(source)))
    return Batch(source, target, text, null, torch.zeros(len(source), dtype=torch.long), ids, tuple(found.instructions))


def run(params: InversionParams, root: Path) -> Summary:
    """Learn one task on the published editor and publish its pack to `models/inversion`."""
    runtime = Runtime.choose(params.device, params.dtype)
    folder = root / EDITOR
    read_summary(folder)  # a half-published editor is none
    knobs = params.model_dump(mode="json", exclude={"world"}) | {"benchmark": params.world.benchmark}
    editor = load_editor(str(folder), runtime.device, runtime.torch_dtype)
    source = benchmark.load(params.world.benchmark)
    found = source(params.task, "train", 0, params.n_examples + params.n_held_out)
    everything = examples(editor, found)
    which = torch.arange(len(everything), device=everything.target.device)
    known, held = _some(everything, which[: params.n_examples]), _some(everything, which[params.n_examples :])
    scratch = scratch_folder(root, "inversion", fingerprint(knobs | {"editor": editor.weights}, __file__))
    with Tracker(scratch, "inversion", params.model_dump(mode="json")) as tracker:
        learned = invert(editor, known, held, params, tracker)
    record: dict[str, Any] = {key: value for key, value in asdict(learned).items() if key != "v"} | {"knobs": knobs}
    made = task_pack.Pack(params.task, learned.v, editor.weights, params.n_examples, record)
    task_pack.save(made, scratch / f"{params.task}.safetensors")
    counts = {"examples": params.n_examples, "steps": learned.steps}
    return publish(scratch, root / OUT, "inversion", knobs | {"editor": editor.weights, "record": record}, counts)


def _loss(editor: Editor, batch: Batch, draws: Draws, v: Tensor, weights: Weights) -> Tensor:
    return loss.per_sample(editor.net, editor.frame.scheduler, batch, draws, v.expand(len(batch), -1), weights).mean()


def _some(batch: Batch, rows: Tensor) -> Batch:
    pooled = None if batch.text.pooled is None else batch.text.pooled[rows]
    text = TextCondition(batch.text.hidden[rows], pooled)
    ids, said = (tuple(words[int(i)] for i in rows) for words in (batch.ids, batch.said))
    return Batch(batch.source[rows], batch.target[rows], text, batch.null, batch.tasks, ids, said)


if __name__ == "__main__":
    run(config.load(InversionParams, "inversion"), Path())
