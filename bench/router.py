"""How accurate is the task predictor for wordings that it was not trained on, compared with baselines?

`uv run python bench/router.py [--quick]` writes `bench/results/router.json`; its last line is the same JSON. It generates
captions, instructions of all sixteen tasks and a task predictor with the stages of the pipeline, in a separate folder.

`held_out_templates`: instructions of templates that the training data do not use. `other_people`: the list
`bench/wordings/other_people.yaml`, which no template generates. `two_tasks`: instructions that fit two tasks ("make it
darker"); the share for which both are readings. `clear_but_ambiguous`: the share of the others with two readings.
`non_instructions`: the texts `test` of `emuedit/predictor/non_instructions.yaml`; the share that is
refused, also per kind. `pipeline` has the results of the stage itself, from cross-fitting.

The other systems are trained on the same instructions and texts to refuse. `tf_idf_words` and `tf_idf_letters`:
logistic regression on TF-IDF of words and of letters. `nearest_neighbour`: the most similar instruction by the toy
CLIP's text embedding. `keywords`: simple regular expressions.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import yaml
from harness import command, task_classifiers
from harness.task_classifiers import Guess, LabelledText

from emuedit import config
from emuedit.data.publish import read_folder, read_summary
from emuedit.data.records import Instruction
from emuedit.predictor import task_predictor
from emuedit.predictor.calibration import calibration_error
from emuedit.predictor.non_instructions import NON_INSTRUCTIONS, load_non_instructions
from emuedit.predictor.task_predictor import NO_EDIT, TaskPredictor
from emuedit.stages import captions, instructions, router
from emuedit.tasks import ALL_TASKS
from toyworld.edits.caption_edits import UnsuitableCaptionError, write_edit
from toyworld.edits.caption_parser import parse
from toyworld.edits.phrasings import TEMPLATE_SPLITS, TemplateSplit, TemplateTable, template_table
from toyworld.scenes import caption_grammar
from toyworld.scenes.caption_grammar import wording_rng

N_CAPTIONS, QUICK_CAPTIONS = 1600, 60
PER_TASK, QUICK_PER_TASK = 200, 20
"""Instructions per task at most; the default run has 51 to 130."""
QUICK_EPOCHS = 1
N_HELD_OUT, QUICK_HELD_OUT = 600, 60
"""Number of captions for held-out instructions, with at most `PER_TASK` instructions per task."""
FROM_MAP_SHARE = 0.3
"""Share of the instructions of the map tasks that go from the map to the image."""
REFERENCES = ("star", "red circle", "heart", "blue square")
"""Objects in the instructions that fit two tasks."""
OTHER_PEOPLE = command.ROOT / "bench" / "wordings" / "other_people.yaml"


def train_predictor(workspace: Path, quick: bool) -> tuple[TaskPredictor, list[LabelledText], float]:
    """Run the stages captions, instructions and router; returns the predictor, its instructions, and the seconds."""
    (workspace / "toyworld").symlink_to(command.ROOT / "toyworld")
    (workspace / config.PARAMS_FILE).write_text((command.ROOT / config.PARAMS_FILE).read_text())
    file = workspace / config.PARAMS_FILE
    n_captions, per_task = (QUICK_CAPTIONS, QUICK_PER_TASK) if quick else (N_CAPTIONS, PER_TASK)
    load: Callable[..., Any] = config.load
    captions.run(load(captions.CaptionsParams, "captions", file).model_copy(update={"n_rows": 2 * n_captions}), workspace)
    changes = {"tasks": ALL_TASKS, "n_captions": n_captions, "max_per_task": per_task}
    instructions.run(load(instructions.InstructionsParams, "instructions", file).model_copy(update=changes), workspace)
    params = load(router.RouterParams, "router", file)
    start = time.perf_counter()
    router.run(params.model_copy(update={"epochs": QUICK_EPOCHS, "folds": 2}) if quick else params, workspace)
    seconds = time.perf_counter() - start
    texts = [(row.text, row.task) for row in read_folder(workspace / instructions.OUT, Instruction)]
    return task_predictor.load(str(workspace / router.OUT)), texts, seconds


def held_out_instructions(n_captions: int, per_task: int) -> list[LabelledText]:
    """Instructions of held-out templates that fit one task, for captions of held-out scenes, deduplicated."""
    table = TemplateTable(template_table("held_out").by_case, shared={})
    counts: Counter[str] = Counter()
    texts: set[LabelledText] = set()
    for number, caption in enumerate(caption_grammar.captions("held_out", 0, n_captions)):
        parsed = parse(caption)
        assert parsed is not None
        for task in ALL_TASKS:
            rng = wording_rng(number, "bench", task)
            try:
                text = write_edit(task, parsed, rng, rng.random() < FROM_MAP_SHARE, table)["instruction"]
            except UnsuitableCaptionError:
                continue
            if counts[task] < per_task and (text, task) not in texts:
                counts[task] += 1
                texts.add((text, task))
    return sorted(texts)


def predictor_guesses(predictor: TaskPredictor) -> Callable[[Sequence[str]], list[Guess]]:
    """The task predictor with the call signature of the other systems."""
    return lambda texts: [Guess(p.task, p.probability, p.refused) for p in predictor.predict(texts)]


def measure_system(
    guess: Callable[[Sequence[str]], list[Guess]],
    held_out: Sequence[LabelledText],
    other_people: Sequence[LabelledText],
    refusable: dict[str, list[str]],
) -> dict[str, Any]:
    """Accuracy on both lists, calibration error, and refusals of true instructions and of other texts."""
    figures: dict[str, Any] = {}
    for name, labelled in (("held_out_templates", held_out), ("other_people", other_people)):
        guesses = guess([text for text, _ in labelled])
        correct = [answer.task == task for answer, (_, task) in zip(guesses, labelled, strict=True)]
        confidence = [answer.probability for answer in guesses]
        figures[name] = {
            "n": len(labelled),
            "accuracy": mean(correct),
            "calibration_error": None
            if None in confidence
            else round(calibration_error(torch.tensor(confidence), torch.tensor(correct)), 4),
            "refused": mean([answer.refused for answer in guesses]),
            "tasks": {
                task: mean([right for right, (_, label) in zip(correct, labelled, strict=True) if label == task])
                for task in ALL_TASKS
            },
        }
    refused = {kind: [answer.refused for answer in guess(texts)] for kind, texts in refusable.items()}
    everything = [value for values in refused.values() for value in values]
    kinds = {kind: mean(values) for kind, values in refused.items()}
    return figures | {"non_instructions": {"n": len(everything), "refused": mean(everything), "kinds": kinds}}


def ambiguity(predictor: TaskPredictor, split: TemplateSplit) -> dict[str, Any]:
    """How often an instruction that fits two tasks gets both as readings, and at least one as the most probable."""
    owners: dict[str, set[str]] = {}
    for (task, _), templates in template_table(split).shared.items():
        for template in templates:
            owners.setdefault(template, set()).add(task)
    texts = [
        (template.format(the=f"the {name}"), tasks)
        for template, tasks in owners.items()
        if len(tasks) > 1
        for name in (REFERENCES if "{the}" in template else REFERENCES[:1])
    ]
    predictions = predictor.predict([text for text, _ in texts])
    both = [{task for task, _ in p.readings} == tasks for p, (_, tasks) in zip(predictions, texts, strict=True)]
    either = [p.task in tasks for p, (_, tasks) in zip(predictions, texts, strict=True)]
    return {"n": len(texts), "both_readings": mean(both), "one_of_them": mean(either)}


def mean(values: Sequence[Any]) -> float | None:
    """The mean with four digits; None without values."""
    return round(float(np.mean(values)), 4) if values else None


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""
    quick = f"{QUICK_PER_TASK} instructions per task, {QUICK_EPOCHS} epoch, two folds"
    return command.argument_parser(__doc__, quick=quick).parse_args()


def main() -> None:
    """Train, measure, print."""
    args = parse_arguments()
    torch.set_num_threads(1)
    n_captions, per_task = (QUICK_HELD_OUT, QUICK_PER_TASK) if args.quick else (N_HELD_OUT, PER_TASK)
    with TemporaryDirectory() as folder:
        workspace = Path(folder)
        predictor, training, seconds = train_predictor(workspace, args.quick)
        counts = read_summary(workspace / router.OUT).counts
        pipeline = json.loads((workspace / router.OUT / "metrics.json").read_text())
    file = command.ROOT / NON_INSTRUCTIONS
    others = [(text, NO_EDIT) for texts in load_non_instructions(file, "fit").values() for text in texts]
    held_out = held_out_instructions(n_captions, per_task)
    lists = yaml.safe_load(OTHER_PEOPLE.read_text(encoding="utf-8"))
    other_people = [(text, task) for task, texts in lists.items() for text in texts]
    systems = {"task_predictor": predictor_guesses(predictor), **task_classifiers.fit([*training, *others])}
    refusable = load_non_instructions(file, "test")
    figures: dict[str, Any] = {
        "systems": {name: measure_system(guess, held_out, other_people, refusable) for name, guess in systems.items()},
        "two_tasks": {split: ambiguity(predictor, split) for split in TEMPLATE_SPLITS},
        "clear_but_ambiguous": mean([p.ambiguous for p in predictor.predict([text for text, _ in held_out])]),
        "pipeline": counts | {name: value for name, value in pipeline.items() if name not in ("confusion", "tasks")},
        "router_seconds": round(seconds, 1),
    }
    command.write_result(__file__, figures, args)


if __name__ == "__main__":
    main()
