"""Pairs with an image of the benchmark: an editor that is trained on them was shown what it is measured on.

Shapes: N pairs, V views of the benchmark's images.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from emuedit.data import image_io, look_alikes
from emuedit.data.atomic_file import replacing
from emuedit.data.dependencies import content_key
from emuedit.data.edit_table import read_edit_table
from emuedit.data.image_io import Pixels
from emuedit.data.look_alikes import Matcher
from emuedit.data.png import PngError, decode_png
from emuedit.data.publish import cache_folder
from emuedit.data.threads import map_in_threads
from emuedit.metrics.benchmark_folder import REQUIRED, TABLE
from emuedit.progress import Progress

_ROWS_PER_READ = 64
"""Pairs in memory at a time: 50 MB of PNG files of 512 px."""


def find_copies(benchmark: Path, shards: Mapping[Path, str], cache: Path) -> npt.NDArray[np.bool_]:
    """Which pairs have an image or a result of the benchmark as source or target image; bool [N], in the shards' order.

    Images are compared whole and as centre squares, see `look_alikes`. Of benchmark images of nearly one colour, such as a pose
    on black or a small product on white, only nearly exact copies are found, since others look like them. Damaged images match
    nothing; the stage validation reports them. `benchmark`: a folder. `shards`: file of pairs -> hash of its content. The answers
    are stored in the folder `cache`, so the images of a shard are decoded once. Raises TableError or ImageError for a table or an
    image of the benchmark that cannot be read.
    """
    images = _images_of(benchmark)
    code = (__file__, str(look_alikes.__file__))
    stored = cache_folder(cache, content_key({}, *images, *code, label="dataset: hash the benchmark"))
    files = {shard: stored / f"{digest}.npy" for shard, digest in shards.items()}
    if new := [shard for shard, file in files.items() if not file.exists()]:
        views = np.concatenate([_no_views(), *map_in_threads(_read_views, images)])
        is_uniform = np.array([look_alikes.is_nearly_uniform(view) for view in views], bool)
        matchers = [Matcher(views[~is_uniform], look_alikes.COPY_LEVELS), Matcher(views[is_uniform], look_alikes.EXACT_LEVELS)]
        with Progress("dataset: compare with the benchmark", len(new), "shard") as progress:
            for shard in new:
                is_copy = [np.zeros(0, bool), *(_has_copy(rows, matchers) for rows in _read_pairs(shard))]
                with replacing(files[shard]) as partial, partial.open("wb") as stream:
                    np.save(stream, np.concatenate(is_copy))
                progress.advance()
    return np.concatenate([np.zeros(0, bool), *(np.load(file) for file in files.values())])


def _images_of(benchmark: Path) -> list[Path]:
    """The images and results of all edits, sorted: the examples of previews and inversion are no training pairs either."""
    rows = read_edit_table(benchmark / TABLE, REQUIRED)
    return sorted({benchmark / name for row in rows for name in (row["image"], row.get("result")) if name})


def _read_views(file: Path) -> Pixels:
    return _views(image_io.read_image(file).pixels)


def _views(pixels: Pixels) -> Pixels:
    """Thumbnails of an image and of its centre square, uint8 [2, 16, 16, 3]."""
    side = min(pixels.shape[:2])
    return np.stack([look_alikes.thumbnail(pixels), look_alikes.thumbnail(image_io.fit_square(pixels, side))])


def _read_pairs(shard: Path) -> Iterator[list[tuple[bytes, bytes]]]:
    """The PNG files of a shard's pairs, source and target, some at a time."""
    for rows in pq.ParquetFile(shard).iter_batches(batch_size=_ROWS_PER_READ, columns=["source", "target"]):
        yield [(row["source"]["bytes"], row["target"]["bytes"]) for row in rows.to_pylist()]


def _has_copy(pairs: list[tuple[bytes, bytes]], matchers: Sequence[Matcher]) -> npt.NDArray[np.bool_]:
    """Whether the source or the target of each pair looks like an image of the benchmark."""
    is_copy = map_in_threads(lambda png: _is_copy(png, matchers), [png for pair in pairs for png in pair])
    return np.asarray(np.array(list(is_copy), bool).reshape(len(pairs), 2).any(1))


def _is_copy(png: bytes, matchers: Sequence[Matcher]) -> bool:
    """Whether one of the views of a PNG file has a match; a damaged one has none."""
    try:
        views = _views(decode_png(png))
    except PngError:
        return False
    return any(matcher.has_match(view) for view in views for matcher in matchers)


def _no_views() -> Pixels:
    return np.zeros((0, *look_alikes.SHAPE), np.uint8)
