"""`python -m toyworld.training.fit_scene_references`: computes the statistics for classifying scenes, in ten seconds.

Run it when the renderer or the statistics of images change; a test compares the file with what this module computes.
"""

from dataclasses import asdict, replace

import numpy as np
from safetensors.numpy import save_file
from scipy.ndimage import gaussian_filter

from toyworld.reading.scene_references import FILE, SCENE_CLASSES, SceneReferences
from toyworld.reading.scene_statistics import image_statistics
from toyworld.scenes import render
from toyworld.scenes.scene import generate_scenes, scene_numbers

_REFERENCES = 40  # rendered images per class
_BLUR_PX = (0.0, 0.5, 0.8, 1.1)  # sigmas of the blur of the references, in turn, to imitate a decoder
_SHRINKAGE = 0.02  # added to the eigenvalues of the correlation matrix


def fit() -> SceneReferences:
    """Render the references and compute their statistics."""
    pool = generate_scenes(scene_numbers("train", 900_000, 12 * 8 * _REFERENCES))
    rows = []
    for background, condition, style in SCENE_CLASSES:
        references = pool[np.flatnonzero(pool.background == background)[:_REFERENCES]]
        zero = np.zeros(len(references), np.int16)
        references = replace(references, condition=zero + condition, style=zero + style)
        pictures = render.images(references).astype(np.float32) / 255
        for i, sigma_px in enumerate(_BLUR_PX[1:], 1):
            part = pictures[i :: len(_BLUR_PX)]
            pictures[i :: len(_BLUR_PX)] = gaussian_filter(part, (0, sigma_px, sigma_px, 0))
        rows.append(image_statistics(pictures))
    table = np.stack(rows)  # [80, R, F]
    mean = table.mean(1)
    residuals = (table - mean[:, None]).reshape(-1, table.shape[-1])
    std = residuals.std(0)
    eigenvalues, eigenvectors = np.linalg.eigh(np.cov((residuals / std).T))
    whitening = (eigenvectors / np.sqrt(eigenvalues + _SHRINKAGE)) / std[:, None]
    typical_max = np.quantile(((residuals @ whitening) ** 2).sum(1), 0.995)
    return SceneReferences(mean @ whitening, whitening, np.asarray(typical_max))


def main() -> None:
    """Compute the statistics and write the file that `toyworld.reading` loads."""
    save_file({name: np.ascontiguousarray(value) for name, value in asdict(fit()).items()}, FILE)
    FILE.chmod(0o644)  # safetensors files are readable only by their owner
    print(FILE)


if __name__ == "__main__":
    main()
