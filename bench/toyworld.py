"""How fast is the toy world? Scenes per second on one core, beside drawing them with Pillow.

`uv run python bench/toyworld.py [--quick]` writes `bench/results/toyworld.json`; its last line is the same JSON.
The Pillow drawing is what one would write first: the background tile, one antialiased (4x) outline an object, no shading,
no weather, no truths: it does less.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from toyworld.scenes import backgrounds, caption_grammar, render
from toyworld.scenes.palette import BACKGROUNDS, RGB, SHAPES, SIZE
from toyworld.scenes.scene import Scenes, generate_scenes, scene_numbers

OVERSAMPLING = 4


def with_pillow(some: Scenes) -> list[np.ndarray]:
    """The scenes' backgrounds and circles or squares in place of all shapes, one by one."""
    tiles = [Image.fromarray((tile * 255).astype(np.uint8)) for tile in backgrounds.background_tiles()]
    assert len(tiles) == len(BACKGROUNDS)
    drawn = []
    for n in range(len(some)):
        left, top = int(some.tile_x[n]), int(some.tile_y[n])
        picture = tiles[some.background[n]].crop((left, top, left + SIZE, top + SIZE))
        picture = picture.resize((SIZE * OVERSAMPLING, SIZE * OVERSAMPLING))
        pen = ImageDraw.Draw(picture)
        for slot in np.flatnonzero(some.present[n]):
            x, y, r = (int(getattr(some, name)[n, slot]) * OVERSAMPLING for name in ("x", "y", "radius"))
            fill = tuple(int(255 * c) for c in RGB[some.colour[n, slot]])
            shape = pen.ellipse if some.kind[n, slot] == SHAPES.index("circle") else pen.rectangle
            shape((x - r, y - r, x + r, y + r), fill=fill, outline="black")
        drawn.append(np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX)))
    return drawn


def per_second(work: Callable[[], object], items: int, rounds: int) -> float:
    """Median over `rounds` of items per second of processor time (one thread: numpy's loops here use no other)."""
    rates = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        rates.append(items / (time.process_time() - began))
    return statistics.median(rates)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer scenes and rounds")
    quick = parser.parse_args().quick
    n, rounds = (512, 3) if quick else (4096, 7)
    which = scene_numbers("train", 0, n)
    some = generate_scenes(which)
    render.truth(some[:64])
    rates = {
        "scenes_drawn_from_numbers": per_second(lambda: generate_scenes(which), n, rounds),
        "pictures": per_second(lambda: render.images(some), n, rounds),
        "pictures_with_all_truths": per_second(lambda: render.truth(some), n, rounds),
        "captions": per_second(lambda: caption_grammar.all_captions(some), n, rounds),
        "pillow_pictures": per_second(lambda: with_pillow(some), n, rounds),
    }
    figures = {f"{name}_per_second": round(rate) for name, rate in rates.items()}
    figures["ratio_vs_pillow"] = round(rates["pictures"] / rates["pillow_pictures"], 2)
    figures["n_scenes"], figures["rounds"] = n, rounds
    Path(__file__).parent.joinpath("results", "toyworld.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
