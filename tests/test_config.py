import importlib
from pathlib import Path

import pytest
from pydantic import ValidationError

from emuedit.config import Params, ParamsError, World, load, locate

WORLD = """world: {name: w, captions: c.txt, base_model: p, detector: d, segmenter: s, clip: c, dino: d, depth: e, llm: w, t5: t,
  annotators: a.py, benchmark: b.py}
"""


class Inner(Params):
    width: int
    """Width in px."""


class Knobs(Params):
    rate: float
    """Learning rate."""
    sizes: tuple[int, ...]
    """Sizes in px."""
    name: str
    """Name."""
    inner: Inner
    """More."""


def put(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text)
    return path


def knobs(folder: Path, text: str) -> Knobs:
    return load(Knobs, "train", put(folder, f"train: {{{text}}}"))


GOOD = "rate: 1, sizes: [1, 2], name: x, inner: {width: 3}"


def test_reads_ints_as_floats_lists_as_tuples_and_exponents_as_numbers(tmp_path: Path) -> None:
    read = knobs(tmp_path, GOOD)
    assert read == Knobs(rate=1.0, sizes=(1, 2), name="x", inner=Inner(width=3))
    assert isinstance(read.rate, float)
    assert knobs(tmp_path, GOOD.replace("rate: 1", "rate: 1e-4")).rate == 1e-4


def test_is_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        knobs(tmp_path, GOOD).rate = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + ", nmae: y", r"unknown key 'nmae' \(did you mean 'name'\?\); known: inner, name, rate, sizes"),
        (GOOD.replace("name: x, ", ""), "missing key 'name': Name.; known: inner, name, rate, sizes"),
        (GOOD.replace("name: x", "name: 3"), r"key 'name': .*valid string; got 3 \(int\)"),
        (GOOD.replace("rate: 1", "rate: '1'"), r"key 'rate': .*valid number; got '1' \(str\)"),
        (GOOD.replace("rate: 1", "rate: true"), r"key 'rate': .*; got True \(bool\)"),
        (GOOD.replace("[1, 2]", "[1, 2.5]"), r"key 'sizes.1': .*; got 2.5 \(float\)"),
        (GOOD.replace("width: 3", "widht: 3"), r"unknown key 'inner.widht' \(did you mean 'width'\?\); known: width"),
        (GOOD.replace("width: 3", ""), "missing key 'inner.width': Width in px."),
        (GOOD + ", name: z", "key 'name' stands twice"),
        (GOOD.replace("name: x", "name: 2020-01-01"), "want numbers, text"),
        ("rate: 1, rate", "no valid YAML|unknown|missing|twice"),
    ],
)
def test_wrong_sections_are_refused_with_help(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ParamsError, match=message) as caught:
        knobs(tmp_path, text)
    assert str(tmp_path / "params.yaml") in str(caught.value)


def test_error_names_file_and_section(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"params.yaml, section 'train':\n  missing"):
        knobs(tmp_path, "rate: 1")


def test_absent_section_and_file(tmp_path: Path) -> None:
    path = put(tmp_path, "training: {}\nworld: {}\n")
    with pytest.raises(
        ParamsError, match=r"want section 'trainin', got none \(did you mean 'training'\?\); known: training, world"
    ):
        load(Knobs, "trainin", path)
    with pytest.raises(ParamsError, match="got none at"):
        load(Knobs, "train", tmp_path / "absent.yaml")
    with pytest.raises(ParamsError, match="want a mapping"):
        load(Knobs, "train", put(tmp_path, "- 1\n"))
    with pytest.raises(ParamsError, match="want keys with values, got NoneType"):
        load(Knobs, "train", put(tmp_path, "train:\n"))


class Station(Params):
    world: World
    """World."""
    n: int
    """Number."""


def test_world_is_written_once_for_all_stations(tmp_path: Path) -> None:
    path = put(tmp_path, WORLD + "a: {n: 1}\n")
    assert load(Station, "a", path).world == load(World, "world", path)
    with pytest.raises(ParamsError, match="want section 'world'"):
        load(Station, "a", put(tmp_path, "a: {n: 1}\n"))


def test_locate_knows_folders_from_hub_ids(tmp_path: Path) -> None:
    (tmp_path / "weights" / "base_model").mkdir(parents=True)
    assert locate("weights/base_model", tmp_path) == str((tmp_path / "weights" / "base_model").resolve())
    for name in ("facebook/dinov2-small", "gpt2", "toyworld.edits.rule_llm:toy_llm", "https://host/v1/chat#m"):
        assert locate(name, tmp_path) == name
    for name in ("./weights/paintr", "a/b/c", "/nowhere"):
        with pytest.raises(ParamsError, match="want an existing file or folder"):
            locate(name, tmp_path)


def test_default_world_is_there() -> None:
    """Every name in the shipped params.yaml leads somewhere; `locate` refuses a path that does not."""
    root = Path(__file__).parent.parent
    world = load(World, "world", root / "params.yaml")
    module, _, factory = world.llm.partition(":")
    assert callable(getattr(importlib.import_module(module), factory))
    assert (root / world.captions).is_file()
