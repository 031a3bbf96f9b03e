"""The first images of a shard."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from emuedit.data.records import Instruction
from emuedit.synthesis import batching, shard_sources


def test_every_caption_has_a_seed_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It depends on the caption alone; with equal seeds all sources would start from the same noise."""
    drawn: list[list[int]] = []

    def generate(sampler: Any, captions: list[str], seeds: list[int], *_: Any) -> Any:
        drawn.append(seeds)
        return None, torch.zeros(len(captions), 3, 8, 8)

    monkeypatch.setattr(batching, "generate_sources", generate)
    sampler: Any = SimpleNamespace(base_model=SimpleNamespace(size=(8, 8)))
    params: Any = SimpleNamespace(guidance_scale=3.0, rows_per_batch=4)

    def seeds_of(*captions: str) -> dict[str, int]:
        rows = [Instruction("c0", "local", "edit", text, "x", None, None, False, 0, "test", "") for text in captions]
        sources = shard_sources.make_sources(rows, sampler, params, tmp_path)
        assert sources.seeds == drawn[-1]
        return {row.source_caption: sources.seed(sources.row(row)) for row in rows}

    seeds = seeds_of("a star", "a ring", "a disc")
    assert len(set(seeds.values())) == 3
    assert seeds_of("a ring") == {"a ring": seeds["a ring"]}
