"""`python -m toyworld.training.measure`: held-out figures of the toy world's models, into docs/toyworld.json.

Every model is loaded as the stations load it. The last line printed is the JSON.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from emuedit.models import clip, depth, dino, image_tensors, text_to_image, vae_latents
from toyworld import reading
from toyworld.scenes import render
from toyworld.scenes.caption_grammar import all_captions
from toyworld.scenes.palette import ALLOWED_COLOURS, COLOURS, CONDITIONS
from toyworld.scenes.scene import Scenes, numbers, scenes
from toyworld.training import generated_samples
from toyworld.training.detection_metrics import detection, segmentation
from toyworld.training.mixed_pictures import mixed

Figures = dict[str, float]
WEIGHTS, REPORT = Path("toyworld/weights"), Path("docs/toyworld.json")
SAMPLES = Path("docs/images/base_model.png")
_BATCH = 64


def retrieval(folder: Path, draws: int = 16, n: int = 64) -> Figures:
    """How often the right one of `n` pictures is nearest to a caption, and the other way; captions of a draw differ."""
    judge = clip.load(str(folder))
    to_picture, to_text = [], []
    for draw in range(draws):
        all_scenes = scenes(numbers("held_out", 10_000 + draw * 2 * n, 2 * n))
        said = all_captions(all_scenes)
        rows = [i for i, text in enumerate(said) if said.index(text) == i][:n]
        pictures = judge.embed_images(image_tensors.from_uint8(render.images(all_scenes[np.array(rows)])))
        likeness = judge.embed_texts([said[i] for i in rows]) @ pictures.T  # [n texts, n pictures]
        same = torch.arange(n)
        to_picture.append((likeness.argmax(1) == same).float().mean())
        to_text.append((likeness.argmax(0) == same).float().mean())
    return {"r1_text_to_image": float(torch.stack(to_picture).mean()), "r1_image_to_text": float(torch.stack(to_text).mean())}


def nearness(folder: Path, n: int = 600) -> Figures:
    """L1 of disparity in [0, 1]: raw; after each map is stretched to its own range, as the judge gives it; and of a constant
    map (the mean of all truths), to compare with.
    """
    judge = depth.load(str(folder))
    known = render.truth(scenes(numbers("held_out", 0, n)))
    x, truth = image_tensors.from_uint8(known.images), torch.from_numpy(known.disparity)
    with torch.no_grad():
        raw = torch.cat([judge.model(part).predicted_depth for part in x.split(_BATCH)])
    stretched = torch.cat([judge.depth(part) for part in x.split(_BATCH)])
    return {
        "l1_raw": float((raw - truth).abs().mean()),
        "l1_stretched": float((stretched - depth.stretch(truth)).abs().mean()),
        "l1_of_the_mean_map": float((truth - truth.mean(0)).abs().mean()),
    }


def likeness(folder: Path, n: int = 600, n_known: int = 2400, k: int = 10) -> Figures:
    """What the DINO judge calls alike: mean cosines of a scene with itself under other noise, other weather, one object of
    another colour, and with another scene; how often the first two are nearer than the last; and how often the majority of
    the k nearest of `n_known` training pictures has the right background (kNN), or first object.
    """
    judge = dino.load(str(folder))

    def embed(some: Scenes) -> Tensor:
        x = image_tensors.from_uint8(render.images(some))
        return torch.cat([judge.embed_images(part) for part in x.split(_BATCH)])

    held = scenes(numbers("held_out", 0, n))
    held = held[held.present[:, 0]]
    rows = np.arange(len(held))
    clear = held.condition == 0
    allowed = ALLOWED_COLOURS[held.background]
    steps = np.arange(1, len(COLOURS))
    others = (held.colour[:, :1] + steps) % len(COLOURS)
    chosen = others[rows, np.take_along_axis(allowed, others, 1).argmax(1)].astype(np.int16)
    own = embed(held)
    cosine = {
        "noise": (own * embed(replace(held, tile_x=(held.tile_x + 41) % 128, tile_y=(held.tile_y + 29) % 128))).sum(1),
        "weather": (own * embed(replace(held, condition=np.where(clear, 1 + rows % (len(CONDITIONS) - 1), 0)))).sum(1),
        "colour": (own * embed(held.edited(rows, np.zeros_like(rows), colour=chosen))).sum(1),
        "other": (own * own.roll(1, 0)).sum(1),
    }
    train = scenes(numbers("train", 0, n_known))
    train = train[train.present[:, 0]]
    nearest = (own @ embed(train).T).topk(k).indices.numpy()  # [n, k]

    def knn(known: np.ndarray, truth: np.ndarray) -> float:
        votes = known[nearest]
        return float(np.mean([np.bincount(row).argmax() == right for row, right in zip(votes, truth, strict=True)]))

    figures = {f"cosine_{name}": float(values.mean()) for name, values in cosine.items()}
    figures |= {
        f"{name}_nearer_than_other": float((cosine[name] > cosine["other"]).float().mean())
        for name in ("noise", "weather", "colour")
    }
    return figures | {
        "knn_background": knn(train.background, held.background),
        "knn_first_object": knn(train.kind[:, 0], held.kind[:, 0]),
    }


def fidelity(folder: Path, n: int = 1024) -> Figures:
    """PSNR in dB of the base_model's autoencoder, mean over held-out pictures: of every kind, and of scenes alone."""
    model = text_to_image.load(str(folder))
    figures = {}
    for name, make in (("psnr", mixed), ("psnr_scenes", lambda which: render.images(scenes(which)))):
        x = image_tensors.from_uint8(make(numbers("held_out", 0, n)))
        y = torch.cat([vae_latents.decode(model.vae, model.encode(part)) for part in x.split(_BATCH)])
        error = F.mse_loss(y, x, reduction="none").mean((1, 2, 3)).clamp_min(1e-10)
        figures[name] = float((10 * torch.log10(4 / error)).mean())
    return figures


def faithfulness(folder: Path, shown: Path, n: int = 256) -> Figures:
    """How often what a held-out caption asks for is seen in the base_model's picture: a share per attribute, by the oracle.

    The first sixteen pictures go to the file `shown`, beside what the renderer draws for the same captions.
    """
    asked, painted = generated_samples.held_out(text_to_image.load(str(folder)), n)
    shown.parent.mkdir(parents=True, exist_ok=True)
    generated_samples.sheet(asked[:16], painted[:16]).save(shown, optimize=True)
    return reading.faithfulness(painted, asked)


def megabytes(folder: Path) -> float:
    """Size of all files below, in 10^6 bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def main() -> None:
    """Measure the models that are there, or the named ones, and renew their part of the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="detector, segmenter, clip, depth, dino, vae, base_model; all if none is given")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--report", type=Path, default=REPORT)
    parser.add_argument("--samples", type=Path, default=SAMPLES, help="where a sheet of painted pictures goes")
    args = parser.parse_args()
    at = args.weights
    measures: dict[str, Callable[[], Figures]] = {
        "detector": lambda: detection(at / "detector"),
        "segmenter": lambda: segmentation(at / "segmenter", at / "detector"),
        "clip": lambda: retrieval(at / "clip"),
        "depth": lambda: nearness(at / "depth"),
        "dino": lambda: likeness(at / "dino"),
        "vae": lambda: fidelity(at / "base_model"),
        "base_model": lambda: faithfulness(at / "base_model", args.samples),
    }
    if unknown := sorted(set(args.names) - set(measures)):
        parser.error(f"unknown models {', '.join(unknown)}; known are {', '.join(measures)}")
    report = json.loads(args.report.read_text()) if args.report.exists() else {}
    for name, measure in measures.items():
        if args.names and name not in args.names:
            continue
        folder = at / ("base_model" if name == "vae" else name)
        if not folder.exists():
            print(f"{name}: no {folder}; train it with python -m toyworld.training {name}")
            continue
        report[name] = {key: round(value, 4) for key, value in measure().items()}
        if name != "vae":
            report[name]["megabytes"] = round(megabytes(folder), 2)
        print(f"{name}: {report[name]}", flush=True)
    args.report.parent.mkdir(parents=True, exist_ok=True)
    args.report.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
