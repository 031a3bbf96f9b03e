"""Imports every module of emuedit with the orchestrators and the tracker blocked, and prints what that did (JSON).

Run as a program of its own by `test_house.py`. Arguments: the modules to import.
"""

import importlib
import json
import logging
import sys
import threading
from typing import Any, NoReturn

BLOCKED = ("prefect", "dvc", "mlflow")
LEAVES_TRACES = {"subprocess.Popen", "os.system", "socket.connect", "os.mkdir", "os.remove", "os.rename", "tempfile.mkstemp"}

deeds: list[str] = []
module = ""


class Without:
    """A finder of modules that finds everything but the blocked packages, as if they were not installed."""

    def __init__(self, finder: Any) -> None:
        self.finder = finder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Part of the import system."""
        return None if name.split(".")[0] in BLOCKED else self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


def ours() -> bool:
    """Whether the body of a module of ours is at work, and not that of a third party it imports."""
    frame: Any = sys._getframe(2)
    while frame and (frame.f_code.co_name != "<module>" or "importlib" in frame.f_code.co_filename):
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__") == module


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Notes whatever leaves a trace outside the process while one of our modules is imported."""
    if not module or event not in LEAVES_TRACES | {"open"} or not ours():
        return
    if event != "open":
        deeds.append(f"{module} does {event} {str(arguments[0])[:100]}")
    elif isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        deeds.append(f"{module} opens {arguments[0]} for writing")


def state() -> dict[str, object]:
    """What an import may not change."""
    root = logging.getLogger()
    return {
        "threads": sorted(one.name for one in threading.enumerate()),
        "log": [root.level, [str(one) for one in root.handlers]],
    }


def refuse(*_: object, **__: object) -> NoReturn:
    """Stands in for the reading of a command line."""
    raise AssertionError("reads the command line while imported")


if __name__ == "__main__":
    sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]  # type: ignore[misc]
    sys.dont_write_bytecode = True
    import argparse

    argparse.ArgumentParser.parse_args = refuse  # type: ignore[method-assign]
    sys.addaudithook(watch)
    for name in sys.argv[1:]:
        before, module = state(), name
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a module raises is what is told
            deeds.append(f"{name} cannot be imported: {type(error).__name__}: {error}")
        module = ""
        if (after := state()) != before:
            deeds.append(f"{name} changes {before} into {after}")
    print(json.dumps({"deeds": deeds, "heavy": sorted({"torch"} & set(sys.modules))}))
