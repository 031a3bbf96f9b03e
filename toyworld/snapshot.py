"""`python -m toyworld.snapshot out.png [--scene 2]`: one held-out picture of the toy world, to try an editor on."""

import argparse
from pathlib import Path

from emuedit.data.png import encode_png
from toyworld.scenes import render
from toyworld.scenes.caption_grammar import all_captions
from toyworld.scenes.scene import numbers, scenes


def main() -> None:
    """Write the picture and say what it shows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="where to write it")
    parser.add_argument("--scene", type=int, default=2, help="which held-out scene (default: 2)")
    args = parser.parse_args()
    scene = scenes(numbers("held_out", args.scene, 1))
    args.out.write_bytes(encode_png(render.images(scene)[0]))
    print(f"{args.out}: {all_captions(scene)[0]}")


if __name__ == "__main__":
    main()
