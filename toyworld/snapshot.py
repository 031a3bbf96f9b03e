"""`python -m toyworld.snapshot out.png [--scene 0]`: writes a held-out image of the toy world to try an editor."""

import argparse
from pathlib import Path

from emuedit.data.png import encode_png
from toyworld.scenes import render
from toyworld.scenes.caption_grammar import all_captions
from toyworld.scenes.scene import generate_scenes, scene_numbers


def main() -> None:
    """Write the image and print its caption."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="path of the PNG to write")
    parser.add_argument("--scene", type=int, default=0, help="index of the held-out scene (default: 0)")
    args = parser.parse_args()
    scene = generate_scenes(scene_numbers("held_out", args.scene, 1))
    args.out.write_bytes(encode_png(render.images(scene)[0]))
    print(f"{args.out}: {all_captions(scene)[0]}")


if __name__ == "__main__":
    main()
