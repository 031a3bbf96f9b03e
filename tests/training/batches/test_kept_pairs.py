from pathlib import Path

from emuedit.training.batches.kept_pairs import KeptPairs
from tests.training.tiny_pairs import KEPT, TASKS, make_pair, write_pairs


def test_the_verdicts_of_kept_pairs(tmp_path: Path) -> None:
    pairs = [make_pair(n) for n in range(6)]
    _, dataset = write_pairs(tmp_path, pairs)
    ids = [pair.id for pair in reversed(pairs)]
    kept = KeptPairs.read(dataset).tasks_of([*ids, "0" * 16, "f" * 16])
    assert list(kept.items()) == [(pairs[n].id, TASKS[n]) for n in reversed(range(6)) if KEPT[n]]
    assert KeptPairs.read(write_pairs(tmp_path / "none", [])[1]).tasks_of(ids) == {}
