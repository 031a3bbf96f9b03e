"""The model card of an editor: README.md of its folder and hub page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from emuedit.editor.unet import has_change_mask
from emuedit.models.model_sources import HUB_ID, split_revision
from emuedit.tasks import UnknownTaskError, get_task

CARD_FILE = "README.md"
EXAMPLES = {
    "local": "make the car red",
    "remove": "remove the car",
    "add": "add a car",
    "background": "put the car on a beach",
    "global": "make it winter",
    "style": "make it a watercolour",
}
"""Task -> instruction for the card's example; the first task that the editor has is used."""
TAGS = ("emuedit", "image-editing", "instruction-based-image-editing", "diffusers")

_TEXT = """\
# {title}

Edits images by instruction. It is {a_fine_tuned} with two more inputs: the image to edit and a learned
embedding of the task, as in Emu Edit ([arXiv 2311.10089](https://arxiv.org/abs/2311.10089)).

## How to run it

```python
from PIL import Image
from emuedit import EmuEditPipeline

pipe = EmuEditPipeline.from_pretrained("owner/name")  # a folder or a hub id; needs the package `emuedit`
pipe(prompt="{instruction}", image=Image.open("in.png"), task="{task}").images[0].save("out.png")
```

Arguments are named as in diffusers. `num_inference_steps`, `image_guidance_scale` and `guidance_scale` matter most.

## Tasks

Only these tasks were trained; other names are errors.

{tasks}

## Training

{training}

## Limits

- Instructions are short sentences, in the language of the training data. `task` must be given: this folder has no task predictor.
- Images of other sizes than in training can be edited; the quality was not measured.
- {change_mask}
- It has no safety checker. Check images before you show them to others.
- The licence and the limits of the base model apply to it.
"""


def render(pipeline: Any) -> str:
    """The card of an `EmuEditPipeline`, as Markdown with YAML front matter.

    Everything is derived from the pipeline. The training facts are in its config `training`: `base_model`, which is added to the
    front matter if it is a hub id, and any others by name.
    """
    training = dict(pipeline.config.training or {})
    base_model = str(training.get("base_model", ""))
    front = {"library_name": "diffusers", "pipeline_tag": "image-to-image", "tags": list(TAGS)}
    if HUB_ID.fullmatch(base_model) and not Path(base_model).exists():
        front |= {"base_model": split_revision(base_model)[0], "base_model_relation": "finetune"}
    names = pipeline.task_embedding.names
    example = next((name for name in EXAMPLES if name in names), names[0])
    text = _TEXT.format(
        title=f"An editor of {len(names)} tasks",
        a_fine_tuned=f"a fine-tuned `{base_model}`" if base_model else "a fine-tuned text-to-image network",
        instruction=EXAMPLES.get(example, "the instruction"),
        task=example,
        tasks="\n".join(f"- `{name}`{_description(name)}" for name in names),
        training="\n".join(f"- {_label(key)}: {value}" for key, value in training.items()) or "Nothing was recorded.",
        change_mask=(
            "It predicts where an image changes and keeps the rest; `preserve=0` turns that off."
            if has_change_mask(pipeline.unet, pipeline.vae.config.latent_channels)
            else "It has no change-mask head, so `preserve` has no effect."
        ),
    )
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n{text}"


def write(pipeline: Any, folder: str | Path) -> None:
    """Write the card of a pipeline into its folder."""
    Path(folder, CARD_FILE).write_text(render(pipeline), encoding="utf-8")


def _description(name: str) -> str:
    try:
        return f": {get_task(name).description}"
    except UnknownTaskError:  # learned by inversion from the user's examples
        return ""


def _label(key: str) -> str:
    return key.replace("_", " ")
