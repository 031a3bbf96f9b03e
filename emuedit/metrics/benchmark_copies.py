"""Pairs whose source image is an image of the benchmark: an editor that is trained on them was shown what it is measured on.

Shapes: N pairs, V views of the benchmark's images.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from emuedit.data import image_io, look_alikes
from emuedit.data.atomic_file import replacing
from emuedit.data.dependencies import content_key
from emuedit.data.edit_table import read_edit_table
from emuedit.data.image_io import Pixels
from emuedit.data.png import PngError, decode_png
from emuedit.data.publish import cache_folder
from emuedit.data.threads import map_in_threads
from emuedit.metrics.benchmark_folder import HELD_OUT, REQUIRED, TABLE
from emuedit.progress import Progress

_ROWS_PER_READ = 64
"""Source images in memory at a time: 50 MB of PNG files of 512 px."""


def find_copies(benchmark: Path, shards: Mapping[Path, str], cache: Path) -> npt.NDArray[np.bool_]:
    """Which pairs start from an image of the benchmark's held-out edits or of their results; bool [N], in the shards' order.

    Images are compared whole and as centre squares, see `look_alikes`; a damaged source image matches nothing, the stage
    validation reports it. `benchmark`: a folder. `shards`: file of pairs -> hash of its content. The answers are stored in the
    folder `cache`, so the images of a shard are decoded once. Raises TableError or ImageError for a table or an image of the
    benchmark that cannot be read.
    """
    images = _held_out_images(benchmark)
    code = (__file__, str(look_alikes.__file__))
    stored = cache_folder(cache, content_key({}, *images, *code, label="dataset: hash the benchmark"))
    files = {shard: stored / f"{digest}.npy" for shard, digest in shards.items()}
    if new := [shard for shard, file in files.items() if not file.exists()]:
        views = np.concatenate(list(map_in_threads(_read_views, images)))
        with Progress("dataset: compare with the benchmark", len(new), "shard") as progress:
            for shard in new:
                is_copy = [np.zeros(0, bool), *(_looks_like(source, views) for source in _read_sources(shard))]
                with replacing(files[shard]) as partial, partial.open("wb") as stream:
                    np.save(stream, np.concatenate(is_copy))
                progress.advance()
    return np.concatenate([np.zeros(0, bool), *(np.load(file) for file in files.values())])


def _held_out_images(folder: Path) -> list[Path]:
    """The images of the held-out edits and their results, sorted."""
    rows = read_edit_table(folder / TABLE, REQUIRED)
    held_out = [row for row in rows if (row.get("split") or HELD_OUT) == HELD_OUT]
    return sorted({folder / name for row in held_out for name in (row["image"], row.get("result")) if name})


def _read_views(file: Path) -> Pixels:
    return _views(image_io.read_image(file).pixels)


def _views(pixels: Pixels) -> Pixels:
    """Thumbnails of an image and of its centre square, uint8 [2, 16, 16, 3]."""
    side = min(pixels.shape[:2])
    return np.stack([look_alikes.thumbnail(pixels), look_alikes.thumbnail(image_io.fit_square(pixels, side))])


def _read_sources(shard: Path) -> Iterator[list[bytes]]:
    """The PNG files of a shard's source images, some at a time."""
    for rows in pq.ParquetFile(shard).iter_batches(batch_size=_ROWS_PER_READ, columns=["source"]):
        yield [row["source"]["bytes"] for row in rows.to_pylist()]


def _looks_like(sources: list[bytes], views: Pixels) -> npt.NDArray[np.bool_]:
    """Whether each source image looks like one of the views [V, 16, 16, 3] in one of its own."""
    decoded = map_in_threads(_decode_views, sources)
    return np.array([pair is not None and look_alikes.match(pair, views, look_alikes.COPY_LEVELS).any() for pair in decoded])


def _decode_views(png: bytes) -> Pixels | None:
    try:
        return _views(decode_png(png))
    except PngError:
        return None
