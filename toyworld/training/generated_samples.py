"""What the base_model makes of held-out captions: pictures for people and for the oracle."""

import numpy as np
from PIL import Image
from tqdm import tqdm

from emuedit.data.contact_sheet import grid
from emuedit.models import image_tensors
from emuedit.models.text_to_image import TextToImageModel
from toyworld.scenes.caption_grammar import all_captions
from toyworld.scenes.render import images
from toyworld.scenes.scene import Scenes, numbers, scenes

STEPS, GUIDANCE = 20, 3.0
BATCH = 32


def held_out(
    base_model: TextToImageModel, n: int, start: int = 0, steps: int = STEPS, guidance: float = GUIDANCE
) -> tuple[Scenes, np.ndarray]:
    """Held-out scenes and pictures painted from their captions alone, uint8 [N, 64, 64, 3]. Seeds are scene numbers."""
    asked = scenes(numbers("held_out", start, n))
    said, seeds = all_captions(asked), asked.number.tolist()
    parts = []
    for i in tqdm(range(0, n, BATCH), desc="base_model", unit="batch"):
        x = base_model.generate(said[i : i + BATCH], seeds[i : i + BATCH], steps, guidance)
        parts.append(image_tensors.to_uint8(x))
    return asked, np.concatenate(parts)


def sheet(asked: Scenes, pictures: np.ndarray, columns: int = 8) -> Image.Image:
    """Painted pictures, the renderer's picture of the same scene above each, captions below."""
    strips = []
    for i in range(0, len(asked), columns):
        some = asked[i : i + columns]
        rows = [("rendered", images(some)), ("painted", pictures[i : i + columns])]
        strips.append(grid(rows, all_captions(some), lines=7))
    whole = Image.new("RGB", (strips[0].width, sum(s.height for s in strips)), "white")
    top = 0
    for strip in strips:
        whole.paste(strip, (0, top))
        top += strip.height
    return whole
