"""`python -m toyworld.training.measure`: measures the published toy models on held-out scenes, for docs/toyworld.json.

Models are loaded as in the stages. The last line of the output is the report as JSON.
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
from toyworld.scenes.scene import Scenes, generate_scenes, scene_numbers
from toyworld.training import generated_samples
from toyworld.training.detection_metrics import measure_detection, measure_segmentation
from toyworld.training.mixed_pictures import render_mixed

Metrics = dict[str, float]
WEIGHTS, REPORT = Path("toyworld/weights"), Path("docs/toyworld.json")
SAMPLES = Path("docs/images/base_model.png")
_BATCH = 64


def measure_retrieval(folder: Path, n_sets: int = 16, n: int = 64) -> Metrics:
    """Recall at 1 of the CLIP scorer, text to image and image to text: the mean over sets of `n` images.

    The captions of a set are distinct.
    """
    scorer = clip.load(str(folder))
    text_to_image_hits, image_to_text_hits = [], []
    for k in range(n_sets):
        scenes = generate_scenes(scene_numbers("held_out", 10_000 + k * 2 * n, 2 * n))
        captions = all_captions(scenes)
        rows = [i for i, caption in enumerate(captions) if captions.index(caption) == i][:n]
        images = scorer.embed_images(image_tensors.from_uint8(render.images(scenes[np.array(rows)])))
        similarity = scorer.embed_texts([captions[i] for i in rows]) @ images.T  # [n texts, n images]
        labels = torch.arange(n)
        text_to_image_hits.append((similarity.argmax(1) == labels).float().mean())
        image_to_text_hits.append((similarity.argmax(0) == labels).float().mean())
    return {
        "r1_text_to_image": float(torch.stack(text_to_image_hits).mean()),
        "r1_image_to_text": float(torch.stack(image_to_text_hits).mean()),
    }


def measure_depth(folder: Path, n: int = 600) -> Metrics:
    """Mean L1 error of disparity in [0, 1] over `n` held-out scenes.

    `l1_raw` compares the model's output; `l1_stretched` compares maps normalised to their range, like the depth
    scorer. `l1_of_the_mean_map` is a baseline: the error of a constant map, the mean of all true maps.
    """
    scorer = depth.load(str(folder))
    truth = render.truth(generate_scenes(scene_numbers("held_out", 0, n)))
    x, disparity = image_tensors.from_uint8(truth.images), torch.from_numpy(truth.disparity)
    with torch.no_grad():
        raw = torch.cat([scorer.model(batch).predicted_depth for batch in x.split(_BATCH)])
    stretched = torch.cat([scorer.depth(batch) for batch in x.split(_BATCH)])
    return {
        "l1_raw": float((raw - disparity).abs().mean()),
        "l1_stretched": float((stretched - depth.stretch(disparity)).abs().mean()),
        "l1_of_the_mean_map": float((disparity - disparity.mean(0)).abs().mean()),
    }


def measure_similarity(folder: Path, n: int = 600, n_train: int = 2400, k: int = 10) -> Metrics:
    """Metrics of the DINO scorer on the `n` first held-out scenes that have an object.

    `cosine_*`: mean cosine similarity of a scene and a variant with other background noise, another weather or another
    colour of the first object, and of a scene and an unrelated one (`cosine_other`).
    `*_nearer_than_other`: share of scenes that are more similar to the variant than to the unrelated scene.
    `knn_*`: accuracy of the majority vote of the k nearest of `n_train` training images (those with an object), for the
    background and for the kind of the first object.
    """
    scorer = dino.load(str(folder))

    def embed(scenes: Scenes) -> Tensor:
        x = image_tensors.from_uint8(render.images(scenes))
        return torch.cat([scorer.embed_images(batch) for batch in x.split(_BATCH)])

    scenes = generate_scenes(scene_numbers("held_out", 0, n))
    scenes = scenes[scenes.present[:, 0]]
    rows = np.arange(len(scenes))
    is_clear = scenes.condition == 0
    offsets = np.arange(1, len(COLOURS))
    other_colours = (scenes.colour[:, :1] + offsets) % len(COLOURS)
    is_allowed = np.take_along_axis(ALLOWED_COLOURS[scenes.background], other_colours, 1)
    new_colour = other_colours[rows, is_allowed.argmax(1)].astype(np.int16)
    new_condition = np.where(is_clear, 1 + rows % (len(CONDITIONS) - 1), 0)
    variants = {
        "noise": replace(scenes, tile_x=(scenes.tile_x + 41) % 128, tile_y=(scenes.tile_y + 29) % 128),
        "weather": replace(scenes, condition=new_condition),
        "colour": scenes.replace_fields(rows, np.zeros_like(rows), colour=new_colour),
    }
    embeddings = embed(scenes)
    cosine = {name: (embeddings * embed(variant)).sum(1) for name, variant in variants.items()}
    cosine["other"] = (embeddings * embeddings.roll(1, 0)).sum(1)
    train = generate_scenes(scene_numbers("train", 0, n_train))
    train = train[train.present[:, 0]]
    nearest = (embeddings @ embed(train).T).topk(k).indices.numpy()  # [n, k]

    def knn_accuracy(train_labels: np.ndarray, labels: np.ndarray) -> float:
        votes = train_labels[nearest]
        return float(np.mean([np.bincount(row).argmax() == label for row, label in zip(votes, labels, strict=True)]))

    metrics = {f"cosine_{name}": float(values.mean()) for name, values in cosine.items()}
    metrics |= {f"{name}_nearer_than_other": float((cosine[name] > cosine["other"]).float().mean()) for name in variants}
    return metrics | {
        "knn_background": knn_accuracy(train.background, scenes.background),
        "knn_first_object": knn_accuracy(train.kind[:, 0], scenes.kind[:, 0]),
    }


def measure_reconstruction(folder: Path, n: int = 1024) -> Metrics:
    """Mean PSNR in dB of the base model's VAE over `n` held-out images: of every kind, and only of scenes."""
    model = text_to_image.load(str(folder))
    numbers = scene_numbers("held_out", 0, n)
    metrics = {}
    for name, images in (("psnr", render_mixed(numbers)), ("psnr_scenes", render.images(generate_scenes(numbers)))):
        x = image_tensors.from_uint8(images)
        y = torch.cat([vae_latents.decode(model.vae, model.encode(batch)) for batch in x.split(_BATCH)])
        error = F.mse_loss(y, x, reduction="none").mean((1, 2, 3)).clamp_min(1e-10)
        metrics[name] = float((10 * torch.log10(4 / error)).mean())  # values in [-1, 1]: the squared range is 4
    return metrics


def measure_faithfulness(folder: Path, sheet_file: Path, n: int = 256) -> Metrics:
    """Per attribute, the share of images generated from held-out captions that match the caption by the oracle.

    Writes a contact sheet of the first sixteen images, next to the renderings of the same scenes, to `sheet_file`.
    """
    scenes, generated = generated_samples.generate_held_out(text_to_image.load(str(folder)), n)
    sheet_file.parent.mkdir(parents=True, exist_ok=True)
    generated_samples.compose_sheet(scenes[:16], generated[:16]).save(sheet_file, optimize=True)
    return reading.faithfulness(generated, scenes)


def folder_megabytes(folder: Path) -> float:
    """Size of all files in a folder and its subfolders, in 10^6 bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def main() -> None:
    """Measure the named models, or all that exist, and update their entries in the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", help="detector, segmenter, clip, depth, dino, vae, base_model; all if no name is given"
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the published models")
    parser.add_argument("--report", type=Path, default=REPORT, help="JSON file to update")
    parser.add_argument("--samples", type=Path, default=SAMPLES, help="file for a contact sheet of generated images")
    args = parser.parse_args()
    weights = args.weights
    measures: dict[str, Callable[[], Metrics]] = {
        "detector": lambda: measure_detection(weights / "detector"),
        "segmenter": lambda: measure_segmentation(weights / "segmenter", weights / "detector"),
        "clip": lambda: measure_retrieval(weights / "clip"),
        "depth": lambda: measure_depth(weights / "depth"),
        "dino": lambda: measure_similarity(weights / "dino"),
        "vae": lambda: measure_reconstruction(weights / "base_model"),
        "base_model": lambda: measure_faithfulness(weights / "base_model", args.samples),
    }
    if unknown := sorted(set(args.names) - set(measures)):
        parser.error(f"unknown models {', '.join(unknown)}; known are {', '.join(measures)}")
    report = json.loads(args.report.read_text()) if args.report.exists() else {}
    for name, measure in measures.items():
        if args.names and name not in args.names:
            continue
        folder = weights / ("base_model" if name == "vae" else name)
        if not folder.exists():
            print(f"{name}: folder {folder} does not exist; train the model with python -m toyworld.training {name}")
            continue
        report[name] = {key: round(value, 4) for key, value in measure().items()}
        if name != "vae":
            report[name]["megabytes"] = round(folder_megabytes(folder), 2)
        print(f"{name}: {report[name]}", flush=True)
    args.report.parent.mkdir(parents=True, exist_ok=True)
    args.report.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
