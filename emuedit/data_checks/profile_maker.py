"""Compute the profile of the kept pairs: one pass over the texts of all shards, and over the images of a sample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from emuedit.data.file_hashes import hash_all
from emuedit.data.publish import read_summary
from emuedit.data_checks import picture_measures, text_measures
from emuedit.data_checks.pair_profile import MAX_WORDS, Embeddings, PairProfile
from emuedit.data_checks.picture_measures import Embedder, PictureMeasures
from emuedit.data_checks.text_measures import MAX_EXAMPLES, TextMeasures, TextSettings
from emuedit.progress import Progress
from emuedit.training.batches.kept_pairs import KeptPairs, pair_shards


class DamagedVerdictsError(ValueError):
    """Raised for unreadable verdicts, which are needed to find the kept pairs."""


@dataclass(frozen=True)
class SampleSettings:
    """The sample of images to check."""

    pairs: int
    """Maximum number of pairs."""
    shards: int
    """Maximum number of shards to sample from."""
    min_side_px: int
    """Shortest allowed side of an image, in px."""


def make(
    folders: Sequence[Path],
    root: Path,
    dataset: str,
    texts: TextSettings,
    sample: SampleSettings,
    clip: Embedder,
    clip_name: str,
    batch_divisor: int = 1,
) -> tuple[PairProfile, Embeddings]:
    """The profile of the kept pairs in these folders. `dataset`: the folder of verdicts, relative to the root.

    Damaged shards of pairs are counted; raises DamagedVerdictsError for damaged verdicts.
    """
    verdicts, shards = pair_shards([root / dataset]), pair_shards(folders)
    hashes = _hash_files([shard.path for shard in (*verdicts, *shards)])
    for shard in verdicts:
        if reason := text_measures.content_damage(shard, hashes[shard.path]):
            raise DamagedVerdictsError(f"{shard.path} {reason}; run the stage dataset again")
    kept = KeptPairs.read(root / dataset)
    imported = {folder for folder in folders if read_summary(folder).stage == "import"}
    damaged = {shard.path: reason for shard in shards if (reason := text_measures.damage(shard, hashes[shard.path]))}
    readable = [shard for shard in shards if shard.path not in damaged]
    sampled = picture_measures.choose_sample(readable, kept, sample.pairs, sample.shards)
    words, pictures = TextMeasures(texts), PictureMeasures(sample.min_side_px)
    with Progress("validation: texts", len(readable), "shard") as progress:
        for shard in readable:
            ids = sampled.get(shard, set())
            for pair in text_measures.read_texts(shard, kept, shard.path.parent in imported):
                words.add(pair, pair.id in ids)
            progress.advance()
    with Progress("validation: images", sum(map(len, sampled.values())), "pair") as progress:
        rows = chain.from_iterable(picture_measures.read_sampled(shard, ids) for shard, ids in sampled.items())
        for batch in picture_measures.in_batches(rows, batch_divisor):
            pictures.add(batch, clip)
            progress.advance(len(batch))
    picture_figures = pictures.figures(clip)
    excluded = dict(sorted(words.excluded.items()))
    excluded |= {"picture_text": pictures.n_without_caption} if pictures.n_without_caption else {}
    n_absent = 0 if damaged else len(kept.ids) - words.tasks.total()
    damage_list = [f"{text_measures.shard_name(shard, root)} {damaged[shard.path]}" for shard in shards if shard.path in damaged]
    damage_list += [f"{n_absent} kept pairs are in no shard"] if n_absent else []
    examples = merge_examples({"damaged": damage_list}, words.examples, pictures.examples)
    profile = PairProfile(
        tasks=dict(sorted(words.tasks.items())),
        words=dict(words.words.most_common(MAX_WORDS)),
        instruction_lengths={str(n): count for n, count in sorted(words.instruction_lengths.items())},
        caption_lengths={str(n): count for n, count in sorted(words.caption_lengths.items())},
        texts=words.figures() | {"damaged": float(len(damaged) + pictures.n_damaged + n_absent)},
        pictures=picture_figures,
        examples=examples,
        excluded=excluded,
        sample=pictures.n_pairs,
        clip=clip_name,
    )
    return profile, pictures.vectors()


def _hash_files(files: Sequence[Path]) -> dict[Path, str]:
    """File -> hash of its content, 'missing' if there is none. A damaged disk changes no time stamps, so all files are read."""
    with Progress("validation: hash files", len(files), "file") as progress:
        return dict(zip(files, hash_all(files, advance=progress.advance), strict=True))


def merge_examples(*parts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Merge: check -> its first examples."""
    merged: dict[str, list[str]] = {}
    for part in parts:
        for check, examples in part.items():
            merged.setdefault(check, []).extend(examples)
    return {check: examples[:MAX_EXAMPLES] for check, examples in sorted(merged.items()) if examples}
