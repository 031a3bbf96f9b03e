from dataclasses import replace

import torch

from emuedit.synthesis import batching
from emuedit.synthesis.variant_plan import Variant


def test_batches_count_their_sources() -> None:
    variant = Variant(0, "a", torch.ones(1, 2, 2), 0.0, 0.0, 0.0, 0.0, 3.0)
    variants = [replace(variant, source=g, caption=str(n)) for n, g in enumerate([0, 0, 0, 1, 1, 2, 2])]
    batches = list(batching.pack(variants, 4))
    assert [[variant.caption for variant in batch] for batch in batches] == [["0", "1", "2"], ["3", "4"], ["5", "6"]]
    assert all(len(batch) + len({variant.source for variant in batch}) <= 4 for batch in batches)
    assert [len(batch) for batch in batching.pack(variants, 1)] == [1] * 7
