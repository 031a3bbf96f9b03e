"""`python -m toyworld.reading [--n 400] [--vae FOLDER]`: measures how well scenes are read from held-out renders.

Prints one line of JSON: the accuracy per attribute on the renders, on degraded renders (blur, tint, noise) and, with
`--vae`, on the reconstructions of a diffusers AutoencoderTiny.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from toyworld.reading import faithfulness, read_scenes
from toyworld.scenes.render import images
from toyworld.scenes.scene import generate_scenes, scene_numbers


def degrade(pictures: np.ndarray) -> np.ndarray:
    """Imitate the errors of a decoder; uint8 `[N, 64, 64, 3]` to the same.

    Applies a Gaussian blur of 0.6 px, a random gain per channel (sigma 0.02) and Gaussian noise (sigma 0.03).
    """
    rng = np.random.default_rng(0)
    blurred = gaussian_filter(pictures.astype(np.float32) / 255, (0, 0.6, 0.6, 0))
    tinted = blurred * (1 + rng.normal(0, 0.02, (len(pictures), 1, 1, 3)))
    noisy = tinted + rng.normal(0, 0.03, pictures.shape)
    return (np.clip(noisy, 0, 1) * 255 + 0.5).astype(np.uint8)


def reconstruct(vae_folder: Path, pictures: np.ndarray) -> np.ndarray:
    """Encode and decode images with the VAE in the folder; uint8 `[N, 64, 64, 3]` to the same."""
    import torch  # imported here because only this function needs it
    from diffusers import AutoencoderTiny

    from emuedit.models.image_tensors import from_uint8, to_uint8

    vae = AutoencoderTiny.from_pretrained(vae_folder).eval()
    parts = []
    with torch.inference_mode():
        for i in range(0, len(pictures), 50):
            x = from_uint8(pictures[i : i + 50])
            parts.append(to_uint8(vae.decode(vae.encode(x).latents).sample.clamp(-1, 1)))
    return np.concatenate(parts)


def main() -> None:
    """Measure and print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--n", type=int, default=400, help="number of held-out scenes")
    parser.add_argument(
        "--start",
        type=int,
        default=2000,
        help="index of the first held-out scene; the thresholds in `reading` were chosen on the scenes 0..399",
    )
    parser.add_argument("--vae", type=Path, help="folder of an AutoencoderTiny")
    args = parser.parse_args()
    truth = generate_scenes(scene_numbers("held_out", args.start, args.n))
    pictures = images(truth)
    report: dict[str, object] = {"clean": faithfulness(pictures, truth), "rough": faithfulness(degrade(pictures), truth)}
    if args.vae is not None:
        report["vae"] = faithfulness(reconstruct(args.vae, pictures), truth)
    start_s = time.process_time()
    read_scenes(pictures[:100])
    report["ms_a_picture"] = 1000 * (time.process_time() - start_s) / len(pictures[:100])
    print(json.dumps({"n": args.n} | {name: _round(value) for name, value in report.items()}))


def _round(value: object) -> object:
    if isinstance(value, dict):
        return {name: round(v, 4) for name, v in value.items()}
    return round(value, 1) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
