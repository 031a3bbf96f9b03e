"""`python -m toyworld.training [names...]`: trains the toy world's models and publishes their weights.

The same command resumes. Trainings keep their state, and finished models in float32, under `--scratch`.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

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

OUT, SCRATCH = Path("toyworld/weights"), Path("scratch/foundation")


def _train_base_model(scratch: Path) -> Path:
    return _saved(train_base_model.run(scratch, train_vae.run(scratch.parent / "vae")), scratch)


def _continue_base_model(scratch: Path, published: Path) -> Path:
    known = AutoencoderTiny.from_pretrained(published / "vae", dtype=torch.float32)
    return _saved(train_base_model.run(scratch, known, train_base_model.ON, start=published), scratch)


def _saved(made: StableDiffusionPipeline, scratch: Path) -> Path:
    made.save_pretrained(scratch / "model")
    return scratch / "model"


def _encode(scratch: Path) -> None:
    train_vae.run(scratch)


TRAININGS: dict[str, Callable[[Path], Path | None]] = {
    "vae": _encode,  # published within the base_model
    "base_model": _train_base_model,
    "detector": train_detector.run,
    "segmenter": train_segmenter.run,
    "clip": train_clip.run,
    "dino": train_dino.run,
    "depth": train_depth.run,
    "t5": train_t5.run,
}


def publish(folder: Path, out: Path) -> int:
    """Copy a model's folder to `out` with its weights in float16, whole or not at all; returns its bytes."""
    beside = out.with_name(f".{out.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(folder, beside)
    for file in beside.rglob("*.safetensors"):
        halved = {name: value.half() if value.is_floating_point() else value for name, value in load_file(file).items()}
        largest = max(float(value.abs().max()) for value in halved.values() if value.numel())
        if not torch.isfinite(torch.tensor(largest)):
            raise OverflowError(f"{file.name} of {folder} has weights beyond float16; train it with more weight decay")
        save_file(halved, file, metadata={"format": "pt"})
        file.chmod(0o644)  # safetensors writes for its owner alone
    for file in beside.rglob("config.json"):
        said = json.loads(file.read_text())
        said.pop("_name_or_path", None)  # where it was trained is nobody's business
        file.write_text(json.dumps(said | ({"dtype": "float16"} if "dtype" in said else {}), indent=2) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    beside.rename(out)
    return sum(file.stat().st_size for file in out.rglob("*") if file.is_file())


def main() -> None:
    """Train each named model, or all in order, and publish it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(TRAININGS)}; all if none is given")
    parser.add_argument("--out", type=Path, default=OUT, help="where the models are published")
    parser.add_argument(
        "--on", action="store_true", help="train the published base_model on, not a new one; its autoencoder stays"
    )
    parser.add_argument("--scratch", type=Path, default=SCRATCH, help="where trainings keep their state")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(TRAININGS)):
        parser.error(f"unknown models {', '.join(unknown)}; known are {', '.join(TRAININGS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in [name for name in TRAININGS if name in args.names or not args.names]:
        on = args.on and name == "base_model"
        made = _continue_base_model(args.scratch / name, args.out / name) if on else TRAININGS[name](args.scratch / name)
        if made is not None:
            print(f"{args.out / name}: {publish(made, args.out / name) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
