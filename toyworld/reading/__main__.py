"""`python -m toyworld.reading [--n 400] [--vae FOLDER]`: one JSON line, what is recovered from held-out renders.

Shares per attribute on renders as they are, on blurred and noisy ones, and on what a VAE makes of them (the folder of
a diffusers AutoencoderTiny).
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from toyworld.reading import faithfulness, read
from toyworld.scenes.render import images
from toyworld.scenes.scene import numbers, scenes


def roughened(pictures: np.ndarray) -> np.ndarray:
    """Blurred by 0.6 px, each channel up to a few per cent off, noise of 0.03: a stand-in for a decoder."""
    rng = np.random.default_rng(0)
    soft = gaussian_filter(pictures.astype(np.float32) / 255, (0, 0.6, 0.6, 0))
    tinted = soft * (1 + rng.normal(0, 0.02, (len(pictures), 1, 1, 3)))
    noisy = tinted + rng.normal(0, 0.03, pictures.shape)
    return (np.clip(noisy, 0, 1) * 255 + 0.5).astype(np.uint8)


def through(folder: Path, pictures: np.ndarray) -> np.ndarray:
    """Encoded and decoded by the VAE in the folder."""
    import torch  # only here: reading itself needs none
    from diffusers import AutoencoderTiny

    from emuedit.models.image_tensors import from_uint8, to_uint8

    vae = AutoencoderTiny.from_pretrained(folder).eval()
    parts = []
    with torch.inference_mode():
        for i in range(0, len(pictures), 50):
            x = from_uint8(pictures[i : i + 50])
            parts.append(to_uint8(vae.decode(vae.encode(x).latents).sample.clamp(-1, 1)))
    return np.concatenate(parts)


def main() -> None:
    """Read, compare, print."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parse.add_argument("--n", type=int, default=400, help="how many held-out scenes")
    parse.add_argument(
        "--start", type=int, default=2000, help="the first of them; the bounds in `reading` were set by looking at 0..399"
    )
    parse.add_argument("--vae", type=Path, help="folder of an AutoencoderTiny")
    args = parse.parse_args()
    truth = scenes(numbers("held_out", args.start, args.n))
    pictures = images(truth)
    found: dict[str, object] = {"clean": faithfulness(pictures, truth), "rough": faithfulness(roughened(pictures), truth)}
    if args.vae is not None:
        found["vae"] = faithfulness(through(args.vae, pictures), truth)
    began = time.process_time()
    read(pictures[:100])
    found["ms_a_picture"] = 1000 * (time.process_time() - began) / len(pictures[:100])
    print(json.dumps({"n": args.n} | {k: _rounded(v) for k, v in found.items()}))


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {k: round(v, 4) for k, v in value.items()}
    return round(value, 1) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
