"""Each library that the code imports is a dependency in pyproject.toml, since another library may drop it at any release."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.repository import ROOT, python_files

PRODUCT = ("emuedit", "flows", "toyworld")
FIRST_PARTY = {*PRODUCT, "harness", *(path.stem for path in (ROOT / "bench").glob("*.py"))}
PART_OF = {
    "botocore": "boto3, which raises its errors",
    "jinja2": "transformers, whose chat templates raise its errors",
    "networkx": "dvc, whose pipeline is one of its graphs",
    "pandas": "mlflow, whose models take and give its frames",
    "sklearn": "mlflow",
    "urllib3": "boto3, which raises its errors",
}
"""Packages that are used together with a declared library, in the version that it requires."""


def declared(group: list[str]) -> set[str]:
    """The names in a list of requirements, normalised."""
    names = [re.match(r"[\w.-]+", requirement) for requirement in group]
    return {normalised(name[0]) for name in names if name}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_packages(path: Path) -> set[str]:
    """The top-level packages that a file imports anywhere, without those of Python and of the project."""
    modules: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.append(node.module)
    return {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) - FIRST_PARTY


@pytest.mark.slow
def test_each_imported_library_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    product = declared(project["project"]["dependencies"])
    bench = product | declared(project["dependency-groups"]["dev"])
    distributions = packages_distributions()
    used: set[str] = set()
    problems = []
    for folders, allowed in ((PRODUCT, product), (("bench",), bench)):
        for path in python_files(*folders):
            packages = imported_packages(path)
            used |= packages
            problems += [
                f"{path.relative_to(ROOT)} imports {package}"
                for package in sorted(packages - PART_OF.keys())
                if not allowed & {normalised(name) for name in distributions.get(package, [package])}
            ]
    assert not problems, "want it among the dependencies of pyproject.toml, or in PART_OF with its reason"
    assert PART_OF.keys() <= used, "want no entries of PART_OF that nothing imports"
