"""Images that the base model generates for held-out captions, for measurements and for a contact sheet."""

import numpy as np
from PIL import Image
from tqdm import tqdm

from emuedit.data.contact_sheet import picture_grid
from emuedit.models import image_tensors
from emuedit.models.text_to_image import TextToImageModel
from toyworld.scenes.caption_grammar import all_captions
from toyworld.scenes.render import images
from toyworld.scenes.scene import Scenes, generate_scenes, scene_numbers

STEPS, GUIDANCE = 20, 3.0
BATCH = 32


def generate_held_out(
    base_model: TextToImageModel, n: int, start: int = 0, steps: int = STEPS, guidance: float = GUIDANCE
) -> tuple[Scenes, np.ndarray]:
    """Held-out scenes, and images from their captions alone, uint8 [N, 64, 64, 3]. The scene number is the seed."""
    scenes = generate_scenes(scene_numbers("held_out", start, n))
    captions, seeds = all_captions(scenes), scenes.number.tolist()
    batches = []
    for i in tqdm(range(0, n, BATCH), desc="base_model", unit="batch"):
        x = base_model.generate(captions[i : i + BATCH], seeds[i : i + BATCH], steps, guidance)
        batches.append(image_tensors.to_uint8(x))
    return scenes, np.concatenate(batches)


def compose_sheet(scenes: Scenes, generated: np.ndarray, columns: int = 8) -> Image.Image:
    """A contact sheet: each generated image [N, 64, 64, 3] below the rendering of its scene and above its caption."""
    strips = []
    for i in range(0, len(scenes), columns):
        strip_scenes = scenes[i : i + columns]
        rows = [("rendered", images(strip_scenes)), ("generated", generated[i : i + columns])]
        strips.append(picture_grid(rows, all_captions(strip_scenes), lines=7))
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet
