import importlib
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from emuedit.config import Params, ParamsError, World, import_function, load, load_optional, merge, read_yaml, resolve_path

ROOT = Path(__file__).parents[1]
WORLD = """world: {name: w, captions: c.txt, base_model: p, detector: d, segmenter: s, clip: c, dino: d, depth: e, llm: w, t5: t,
  annotators: a.py, benchmark: b.py}
"""


class InnerParams(Params):
    width: int
    """Width in px."""


class SquareParams(Params):
    kind: Literal["square"]
    side: int
    """Side in px."""


class CircleParams(Params):
    kind: Literal["circle"]
    radius: int
    """Radius in px."""


Shape = Annotated[SquareParams | CircleParams, Field(discriminator="kind")]


class ExampleParams(Params):
    rate: float
    """Learning rate."""
    sizes: tuple[int, ...]
    """Sizes in px."""
    name: str
    """Name."""
    inner: InnerParams
    """More."""
    shapes: dict[str, tuple[Shape, ...]] = Field({})
    """Shapes by name."""


def write_params(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text)
    return path


def load_example(folder: Path, text: str) -> ExampleParams:
    return load(ExampleParams, "train", write_params(folder, f"train: {{{text}}}"))


VALID = "rate: 1, sizes: [1, 2], name: x, inner: {width: 3}"


def test_integers_become_floats_lists_become_tuples_and_exponents_are_numbers(tmp_path: Path) -> None:
    params = load_example(tmp_path, VALID)
    assert params == ExampleParams(rate=1.0, sizes=(1, 2), name="x", inner=InnerParams(width=3))
    assert isinstance(params.rate, float)
    assert load_example(tmp_path, VALID.replace("rate: 1", "rate: 1e-4")).rate == 1e-4


def test_params_are_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_example(tmp_path, VALID).rate = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (VALID + ", nmae: y", r"unknown key 'nmae'; did you mean 'name'\?; known: inner, name, rate, shapes, sizes"),
        (VALID.replace("name: x, ", ""), "missing key 'name': Name.; known: inner, name, rate, shapes, sizes"),
        (VALID.replace("name: x", "name: 3"), r"key 'name': .*valid string; got 3 \(int\)"),
        (VALID.replace("rate: 1", "rate: '1'"), r"key 'rate': .*valid number; got '1' \(str\)"),
        (VALID.replace("rate: 1", "rate: true"), r"key 'rate': .*; got True \(bool\)"),
        (VALID.replace("[1, 2]", "[1, 2.5]"), r"key 'sizes.1': .*; got 2.5 \(float\)"),
        (VALID.replace("width: 3", "widht: 3"), r"unknown key 'inner.widht'; did you mean 'width'\?; known: width"),
        (VALID.replace("width: 3", ""), "missing key 'inner.width': Width in px."),
        (VALID + ", name: z", "key 'name' is given twice"),
        (VALID.replace("name: x", "name: 2020-01-01"), "want only numbers, text"),
        ("rate: 1, rate", "not valid YAML|unknown|missing|twice"),
    ],
)
def test_wrong_sections_are_refused_with_what_is_known(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ParamsError, match=message) as error:
        load_example(tmp_path, text)
    assert str(tmp_path / "params.yaml") in str(error.value)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ("{a: [{kind: square, sdie: 1}]}", r"unknown key 'shapes.a.0.square.sdie'; did you mean 'side'\?; known: kind, side"),
        ("{a: [{kind: circle}]}", "missing key 'shapes.a.0.circle.radius': Radius in px.; known: kind, radius"),
        ("{a: [{kind: circle, radius: x}]}", r"key 'shapes.a.0.circle.radius': .*valid integer; got 'x' \(str\)"),
        ("{a: [{kind: star}]}", r"key 'shapes.a.0': .*'square', 'circle'"),
    ],
)
def test_errors_inside_of_dicts_lists_and_unions_name_the_keys_known_there(tmp_path: Path, shapes: str, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        load_example(tmp_path, f"{VALID}, shapes: {shapes}")


def test_the_marks_of_a_merge_conflict_are_named(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("<<<<<<< HEAD\nworld:\n  a: 1\n=======\nworld:\n  a: 2\n>>>>>>> other\n")
    with pytest.raises(ParamsError, match=r"(?s)params.yaml is not valid YAML: .*contains merge conflict markers") as error:
        read_yaml(tmp_path / "params.yaml")
    assert "line" in str(error.value)


@pytest.mark.parametrize("content", [b"name: caf\xe9", b"name: 2026-13-01"])
def test_other_encodings_and_dates_that_do_not_exist_are_errors_of_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(ParamsError, match=r"params.yaml is not valid YAML in UTF-8: "):
        read_yaml(tmp_path / "params.yaml")


def test_an_error_names_the_file_and_the_section(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"params.yaml, section 'train':\n  missing"):
        load_example(tmp_path, "rate: 1")


def test_an_optional_section_has_defaults_only_if_it_is_missing(tmp_path: Path) -> None:
    class Margins(Params):
        width: int = 3
        """Width in px."""

    assert load_optional(Margins, "margins", tmp_path / "absent.yaml") == Margins()
    assert load_optional(Margins, "margins", write_params(tmp_path, "other: {}\n")) == Margins()
    assert load_optional(Margins, "margins", write_params(tmp_path, "margins: {width: 5}\n")) == Margins(width=5)
    with pytest.raises(ParamsError, match="unknown key 'wdth'"):
        load_optional(Margins, "margins", write_params(tmp_path, "margins: {wdth: 5}\n"))


def test_missing_sections_and_files_are_named(tmp_path: Path) -> None:
    path = write_params(tmp_path, "training: {}\nworld: {}\n")
    with pytest.raises(ParamsError, match=r"want section 'trainin', got none; did you mean 'training'\?; known: training, world"):
        load(ExampleParams, "trainin", path)
    with pytest.raises(ParamsError, match="got none at"):
        load(ExampleParams, "train", tmp_path / "absent.yaml")
    with pytest.raises(ParamsError, match="want a mapping"):
        load(ExampleParams, "train", write_params(tmp_path, "- 1\n"))
    with pytest.raises(ParamsError, match="want keys with values, got NoneType"):
        load(ExampleParams, "train", write_params(tmp_path, "train:\n"))


class StageParams(Params):
    world: World
    """World."""
    n: int
    """Number."""


def test_the_world_is_written_once_for_all_stages(tmp_path: Path) -> None:
    path = write_params(tmp_path, WORLD + "a: {n: 1}\n")
    assert load(StageParams, "a", path).world == load(World, "world", path)
    with pytest.raises(ParamsError, match="want section 'world'"):
        load(StageParams, "a", write_params(tmp_path, "a: {n: 1}\n"))


def test_a_reference_is_a_path_a_hub_id_a_url_or_a_factory(tmp_path: Path) -> None:
    (tmp_path / "weights" / "base_model").mkdir(parents=True)
    assert resolve_path("weights/base_model", tmp_path) == str((tmp_path / "weights" / "base_model").resolve())
    for name in ("facebook/dinov2-small", "gpt2", "toyworld.edits.rule_llm:toy_llm", "https://host/v1/chat#m"):
        assert resolve_path(name, tmp_path) == name
    for name in ("./weights/base_modl", "a/b/c", "/nowhere"):
        with pytest.raises(ParamsError, match="want an existing file or folder"):
            resolve_path(name, tmp_path)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("/absolute.py", "want a Python file below the root of the project"),
        ("../other.py", "want a Python file below the root of the project"),
        ("toyworld/captions.txt", "want a Python file below the root of the project"),
        ("toyworld/nowhere.py", "want an importable Python file, got toyworld/nowhere.py: No module named 'toyworld.nowhere'"),
        ("toyworld/scenes/palette.py", "want a function annotate in toyworld/scenes/palette.py, got None"),
    ],
)
def test_a_function_is_imported_from_a_python_file_of_the_project(reference: str, message: str) -> None:
    assert import_function("toyworld/edits/toy_benchmark.py", "edits").__name__ == "build_edits"
    with pytest.raises(ParamsError, match=message):
        import_function(reference, "annotate")


def test_every_name_in_the_default_world_exists() -> None:
    """`resolve_path` refuses a path that does not exist."""
    world = load(World, "world", ROOT / "params.yaml")
    module, _, factory = world.llm.partition(":")
    assert callable(getattr(importlib.import_module(module), factory))
    assert (ROOT / world.captions).is_file()
    for name in ("base_model", "detector", "segmenter", "clip", "dino", "depth", "t5"):
        assert Path(resolve_path(getattr(world, name), ROOT)).is_dir(), name
    import_function(world.annotators, "annotate")
    import_function(world.benchmark, "edits")


def test_changes_are_merged_at_every_level() -> None:
    params = {"train": {"steps": 1, "loss_weights": {"a": 1, "b": 2}}, "captions": {"n_rows": 3}}
    changes = {"train": {"loss_weights": {"b": 5}}, "captions": {"n_rows": 4}, "new": 1}
    want = {"train": {"steps": 1, "loss_weights": {"a": 1, "b": 5}}, "captions": {"n_rows": 4}, "new": 1}
    assert merge(params, changes) == want
    assert params["captions"] == {"n_rows": 3}
