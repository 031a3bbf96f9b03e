"""`python -m toyworld.training [names...]`: trains the toy models and publishes their weights.

The same command resumes an interrupted training. Training state and finished float32 models are kept below `--scratch`; that of
`--continue` is in a folder whose name has a hash of the model that it starts from, so that it can be repeated.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from emuedit.data.dependencies import content_key
from toyworld.training import (
    train_base_model,
    train_clip,
    train_depth,
    train_detector,
    train_dino,
    train_segmenter,
    train_t5,
    train_vae,
)

WEIGHTS, SCRATCH = Path("toyworld/weights"), Path("scratch/toyworld-training")


def _train_vae(scratch: Path) -> None:
    train_vae.run(scratch)


def _train_base_model(scratch: Path) -> Path:
    vae = train_vae.run(scratch.parent / "vae")
    return _save_pipeline(train_base_model.run(scratch, vae), scratch)


def _continue_base_model(scratch: Path, published: Path) -> Path:
    vae = AutoencoderTiny.from_pretrained(published / "vae", dtype=torch.float32)
    pipeline = train_base_model.run(scratch, vae, train_base_model.CONTINUE_RECIPE, start=published)
    return _save_pipeline(pipeline, scratch)


def _save_pipeline(pipeline: StableDiffusionPipeline, scratch: Path) -> Path:
    folder = scratch / "model"
    pipeline.save_pretrained(folder)
    return folder


TRAININGS: dict[str, Callable[[Path], Path | None]] = {
    "vae": _train_vae,  # returns no folder: the VAE is published as part of the base model
    "base_model": _train_base_model,
    "detector": train_detector.run,
    "segmenter": train_segmenter.run,
    "clip": train_clip.run,
    "dino": train_dino.run,
    "depth": train_depth.run,
    "t5": train_t5.run,
}


def publish(folder: Path, out: Path) -> int:
    """Copy a model folder to `out` with its weights in float16 and return the size of the copy in bytes.

    The copy is prepared in a hidden folder next to `out`, which replaces `out` only when it is complete.
    Raises OverflowError if a weight is too large for float16; `out` is then unchanged.
    """
    staging = out.with_name(f".{out.name}.new")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(folder, staging)
    for file in staging.rglob("*.safetensors"):
        tensors = {name: value.half() if value.is_floating_point() else value for name, value in load_file(file).items()}
        largest = max(float(value.abs().max()) for value in tensors.values() if value.numel())
        if not torch.isfinite(torch.tensor(largest)):
            raise OverflowError(
                f"want weights within float16's range, got larger ones in {file.name} of {folder}; "
                "train the model with more weight decay"
            )
        save_file(tensors, file, metadata={"format": "pt"})
        file.chmod(0o644)  # safetensors files are readable only by their owner
    for file in staging.rglob("config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)  # a path of the machine that trained the model
        file.write_text(json.dumps(config | ({"dtype": "float16"} if "dtype" in config else {}), indent=2) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    staging.rename(out)
    return sum(file.stat().st_size for file in out.rglob("*") if file.is_file())


def main() -> None:
    """Train and publish each named model, or all of them, in the order of `TRAININGS`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(TRAININGS)}; all if no name is given")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the published models")
    parser.add_argument(
        "--continue",
        action="store_true",
        dest="continue_training",
        help="continue the training of the published base model instead of training a new one; its VAE does not change",
    )
    parser.add_argument("--scratch", type=Path, default=SCRATCH, help="folder for training state")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(TRAININGS)):
        parser.error(f"unknown models {', '.join(unknown)}; known are {', '.join(TRAININGS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in [name for name in TRAININGS if name in args.names or not args.names]:
        scratch, out = args.scratch / name, args.out / name
        if args.continue_training and name == "base_model":
            folder: Path | None = _continue_base_model(args.scratch / f"{name}-{content_key({}, out)}", out)
        else:
            folder = TRAININGS[name](scratch)
        if folder is not None:
            print(f"{out}: {publish(folder, out) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
