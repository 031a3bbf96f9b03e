"""A second `emuedit init`: what was tuned is kept, and what is replaced is listed."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from emuedit import cli
from emuedit.worlds import tuned_params


def init(*arguments: str) -> int:
    return cli.main(["init", "captions.txt", "--no-pin", *arguments])


def read_params(folder: Path) -> dict[str, Any]:
    params: dict[str, Any] = yaml.safe_load((folder / "params.yaml").read_text())
    return params


def write_captions(folder: Path, n: int) -> None:
    (folder / "captions.txt").write_text("".join(f"a dog number {number} at a lake\n" for number in range(n)))


@pytest.mark.slow
def test_more_captions_mean_more_steps(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The steps were computed from 500 captions, whatever their number was changed to later."""
    write_captions(clone, 2000)
    assert init() == 0
    assert (read_params(clone)["instructions"]["n_captions"], read_params(clone)["train"]["steps"]) == (500, 2400)
    capsys.readouterr()
    assert init("--overwrite", "--n-captions", "1500") == 0
    assert (read_params(clone)["instructions"]["n_captions"], read_params(clone)["train"]["steps"]) == (1500, 7300)
    output = capsys.readouterr().out
    assert "replaced in the earlier params.yaml: instructions.n_captions 500 -> 1500; train.steps 2400 -> 7300\n" in output
    assert init("--overwrite", "--n-captions", "3000") == 0
    assert read_params(clone)["instructions"]["n_captions"] == 2000
    assert "instructions.n_captions: 2000, all of captions.txt; got --n-captions 3000" in capsys.readouterr().out
    assert init("--overwrite", "--n-captions", "0") == 2


@pytest.mark.slow
def test_tuned_values_are_kept_and_those_of_options_are_listed(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second `init --overwrite` discarded the filters that had been tuned on the contact sheets."""
    assert init() == 0
    assert "earlier params.yaml" not in capsys.readouterr().out, "that of the toy world is replaced without notes"
    text = (clone / "params.yaml").read_text()
    for old, new in (
        ("    color: {}\n", "    color: {clip_image: {min: 0.9}}   # tuned on the sheets\n"),
        ("moderation: emuedit/prompts/moderation.txt", "moderation: words.txt"),
        ("  guidance_scale: 7.5\n", "  guidance_scale: 6.0\n  min_area: 0.01\n"),
        ("  max_words: 45  ", "  # max_words: 45"),
        ("rows_per_batch: 4 ", "rows_per_batch: 8 "),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (clone / "params.yaml").write_text(text)
    assert init("--overwrite", "--name", "shop") == 0
    assert "    color: {clip_image: {min: 0.9}}   # tuned on the sheets\n" in (clone / "params.yaml").read_text()
    params = read_params(clone)
    assert (params["pairs"]["guidance_scale"], params["pairs"]["min_area"], params["pairs"]["rows_per_batch"]) == (6.0, 0.01, 4)
    assert (params["captions"]["max_words"], params["world"]["name"]) == (45, "shop")
    kept = "instructions.moderation, pairs.guidance_scale, pairs.min_area, dataset.filters"
    output = capsys.readouterr().out
    assert f"- kept from the earlier params.yaml: {kept}; remove a key there to get its default\n" in output
    assert "- replaced in the earlier params.yaml: world.name photos -> shop; pairs.rows_per_batch 8 -> 4\n" in output
    text = (clone / "params.yaml").read_text()
    assert init("--overwrite", "--name", "shop") == 0
    assert (clone / "params.yaml").read_text() == text, "the same options change nothing"


def test_keys_that_cannot_be_kept_are_replaced_and_listed() -> None:
    template = "# Written by `emuedit init`\npairs:\n  a: $a\ndataset:\n  b: 3\n"
    earlier = "# Written by `emuedit init`\npairs:\n  a: &p 1\ndataset:\n  b: *p\n"
    rendered = template.replace("$a", "2")
    assert tuned_params.keep(earlier, rendered, template) == (
        rendered,
        ["replaced in the earlier params.yaml: pairs.a 1 -> 2; dataset.b 1 -> 3"],
    )
    assert tuned_params.keep("# Written by `emuedit init`\n  a: [", rendered, template) == (rendered, [])


@pytest.mark.slow
def test_captions_that_the_word_list_drops_are_counted(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A catalogue lost all thirteen instructions of such a caption."""
    (clone / "captions.txt").write_text("a lace lingerie set\nlingerie on a table\na pot of gore\na mug\n")
    assert init() == 0
    note = r"instructions.moderation: the default list drops 3 of 4 captions: lingerie \(2\), gore \(1\); name a list of your own"
    assert re.search(note, capsys.readouterr().out)
    assert read_params(clone)["instructions"]["moderation"] == "emuedit/prompts/moderation.txt"
