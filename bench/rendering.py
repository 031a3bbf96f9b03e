"""How fast is the toy world? Scenes per second on one core, compared with drawing the same scenes with Pillow.

`uv run python bench/rendering.py [--quick]` writes `bench/results/rendering.json`; its last line is the same JSON. The
version with Pillow is a simple implementation: the background tile and one antialiased (4x) outline per object, one
scene at a time. It does less: no shading, no weather or style, no ground truth.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
from harness import command
from PIL import Image, ImageDraw

from toyworld.scenes import backgrounds, caption_grammar, render
from toyworld.scenes.palette import BACKGROUNDS, RGB, SHAPES, SIZE
from toyworld.scenes.scene import Scenes, generate_scenes, scene_numbers

OVERSAMPLING = 4


def draw_with_pillow(scenes: Scenes) -> list[np.ndarray]:
    """Images uint8 [64, 64, 3] of the scenes' backgrounds, with a circle or square for every object."""
    tiles = [Image.fromarray((tile * 255).astype(np.uint8)) for tile in backgrounds.background_tiles()]
    assert len(tiles) == len(BACKGROUNDS)
    pictures = []
    for n in range(len(scenes)):
        left, top = int(scenes.tile_x[n]), int(scenes.tile_y[n])
        picture = tiles[scenes.background[n]].crop((left, top, left + SIZE, top + SIZE))
        picture = picture.resize((SIZE * OVERSAMPLING, SIZE * OVERSAMPLING))
        pen = ImageDraw.Draw(picture)
        for slot in np.flatnonzero(scenes.present[n]):
            x, y, r = (int(getattr(scenes, name)[n, slot]) * OVERSAMPLING for name in ("x", "y", "radius"))
            fill = tuple(int(255 * c) for c in RGB[scenes.colour[n, slot]])
            shape = pen.ellipse if scenes.kind[n, slot] == SHAPES.index("circle") else pen.rectangle
            shape((x - r, y - r, x + r, y + r), fill=fill, outline="black")
        pictures.append(np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX)))
    return pictures


def items_per_second(work: Callable[[], object], n_items: int, rounds: int) -> float:
    """Median over `rounds` of items per second of CPU time. The work runs in one thread."""
    rates = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        rates.append(n_items / (time.process_time() - start))
    return statistics.median(rates)


def main() -> None:
    """Measure, write, print."""
    parser = command.argument_parser(__doc__, quick="fewer scenes and rounds")
    args = parser.parse_args()
    n, rounds = (512, 3) if args.quick else (4096, 7)
    numbers = scene_numbers("train", 0, n)
    scenes = generate_scenes(numbers)
    render.truth(scenes[:64])  # fills the caches of tiles and stamps
    rates = {
        "scenes_generated": items_per_second(lambda: generate_scenes(numbers), n, rounds),
        "pictures": items_per_second(lambda: render.images(scenes), n, rounds),
        "pictures_with_ground_truth": items_per_second(lambda: render.truth(scenes), n, rounds),
        "captions": items_per_second(lambda: caption_grammar.all_captions(scenes), n, rounds),
        "pillow_pictures": items_per_second(lambda: draw_with_pillow(scenes), n, rounds),
    }
    figures: dict[str, float] = {f"{name}_per_second": round(rate) for name, rate in rates.items()}
    figures["ratio_vs_pillow"] = round(rates["pictures"] / rates["pillow_pictures"], 2)
    command.write_result(__file__, figures | {"n_scenes": n, "rounds": rounds}, args)


if __name__ == "__main__":
    main()
