"""Names that a reader understands at first sight: variables are named after what they hold, and no name means two things."""

import ast
import re
import symtable
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("emuedit", "toyworld", "flows", "bench", "tests")
PRONOUNS = {
    "one", "some", "own", "found", "told", "said", "asked", "every", "whole", "theirs", "mine", "made", "wanted", "known",
    "shown", "given", "lost", "held", "gone", "few", "which", "what", "how", "those", "these", "them", "it",
}  # fmt: skip
DIALECT = re.compile(
    r"\b(pupil|crew|hush|told|knobs?|painter|studio|rivals?|heart|station|house|mend|law|roof|dwell|hired|paint(s|ed|ing)?)\b",
    re.IGNORECASE,
)
ALLOWED = {
    "emuedit/name_hints.py": DIALECT,  # the table of old names
    "toyworld/scenes/palette.py": re.compile("heart"),  # a shape of the toy world
    "toyworld/scenes/stamps.py": re.compile("heart"),
    "bench/router.py": re.compile("heart"),  # the shape
    "bench/harness/task_classifiers.py": re.compile("paint(ing)?"),  # words of instructions
    "toyworld/training/tokenizer.py": re.compile("paint"),  # a word of its vocabulary
    "toyworld/training/train_base_model.py": re.compile("paint"),  # the key of a seed
}
MAY_SHARE_A_NAME = {"__init__", "__main__", "conftest"}


def python_files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def assigned_names(nodes: Sequence[ast.AST]) -> Iterator[tuple[str, int]]:
    """Every name that is bound, with its line; names bound in a comprehension of one line, or by an import, are left out."""
    short: set[ast.AST] = set()
    for node in nodes:
        if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) and node.lineno == node.end_lineno:
            short.update(child for generator in node.generators for child in ast.walk(generator.target))
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node not in short:
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node.lineno


class Names(NamedTuple):
    """Names in a file."""

    pronouns: list[tuple[str, int]]  # with their lines
    classes: list[str]


def scopes_below(scope: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    """This scope and those inside it."""
    yield scope
    for child in scope.get_children():
        yield from scopes_below(child)


@cache
def names_in(path: Path) -> Names:
    """What the tests ask about a file, which is read once. Its symbol table takes a third of the time of its tree."""
    text = path.read_text()
    scopes = list(scopes_below(symtable.symtable(text, str(path), "exec")))
    identifiers = {name for scope in scopes for name in scope.get_identifiers()}
    pronouns: list[tuple[str, int]] = []
    if any(name.strip("_").rpartition("__")[2] in PRONOUNS for name in identifiers):  # __it of the class A is _A__it there
        names = assigned_names(list(ast.walk(ast.parse(text))))
        pronouns = [(name, line) for name, line in names if name.strip("_") in PRONOUNS]
    classes = [scope.get_name() for scope in scopes if scope.get_type() == "class"]
    return Names(pronouns, [name for name in classes if not name.startswith("_")])


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_no_variable_is_named_by_a_pronoun(package: str) -> None:
    bad = [f"{path.relative_to(ROOT)}:{line} {name}" for path in python_files(package) for name, line in names_in(path).pronouns]
    assert not bad, f"{len(bad)} names say nothing about what they hold:\n" + "\n".join(bad)


@pytest.mark.slow
@pytest.mark.parametrize("package", ["emuedit", "toyworld", "flows", "bench"])
def test_no_word_of_the_old_dialect(package: str) -> None:
    bad = [
        f"{path.relative_to(ROOT)}:{number} {match.group()}"
        for path in python_files(package)
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        for match in DIALECT.finditer(line)
        if not (allowed := ALLOWED.get(str(path.relative_to(ROOT)))) or not allowed.fullmatch(match.group())
    ]
    assert not bad, f"{len(bad)} words that a practitioner would not understand:\n" + "\n".join(bad)


def test_no_two_modules_share_a_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for package in ("emuedit", "toyworld", "flows"):
        for path in python_files(package):
            if path.stem not in MAY_SHARE_A_NAME:
                places[path.stem].append(str(path.relative_to(ROOT)))
    assert not {name: paths for name, paths in places.items() if len(paths) > 1}


@pytest.mark.slow
def test_no_two_classes_share_a_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for package in ("emuedit", "toyworld", "flows"):
        for path in python_files(package):
            for name in names_in(path).classes:
                places[name].append(str(path.relative_to(ROOT)))
    assert not {name: paths for name, paths in places.items() if len(paths) > 1}
