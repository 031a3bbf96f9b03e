"""Import modules with the orchestrators and the tracker blocked, and print the side effects of the imports as JSON.

`test_architecture.py` runs it as a program. Arguments: the names of the modules, in groups that `--` divides. Output:
{"effects": one sentence for each side effect or failed import, "heavy": which of the heavy libraries were imported after
each group}.
"""

import importlib
import json
import logging
import os
import sys
import threading
from typing import Any, NoReturn

BLOCKED = ("prefect", "dvc", "mlflow")
HEAVY = {"torch", "diffusers", "transformers", "open_clip", "accelerate"}
WATCHED_EVENTS = {
    "subprocess.Popen",
    "os.system",
    "socket.connect",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "tempfile.mkstemp",
    "open",
}

effects: list[str] = []
current_module = ""
modules = {name for name in sys.argv[1:] if name != "--"}


class BlockingFinder:
    """A module finder that does not find the blocked packages, as if they were not installed."""

    def __init__(self, finder: Any) -> None:
        self.finder = finder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Find a module, see `importlib.abc.MetaPathFinder`."""
        return None if name.split(".")[0] in BLOCKED else self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


def calling_module() -> str:
    """The innermost module whose body runs, if it is one of the modules and not one of a library; else ''."""
    frame: Any = sys._getframe(2)
    while frame and (frame.f_code.co_name != "<module>" or "importlib" in frame.f_code.co_filename):
        frame = frame.f_back
    name = frame.f_globals.get("__name__", "") if frame else ""
    return name if name in modules else ""


def record_effect(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: record events that change something outside the process while one of the modules is imported."""
    if not current_module or event not in WATCHED_EVENTS or not (module := calling_module()):
        return
    if event != "open":
        effects.append(f"{module} does {event} {str(arguments[0])[:100]}")
    elif isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        effects.append(f"{module} opens {arguments[0]} for writing")


def process_state() -> dict[str, object]:
    """State of the process that an import must not change: the threads and the root logger."""
    root = logging.getLogger()
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "log": [root.level, [str(handler) for handler in root.handlers]],
    }


def refuse_to_parse(*_: object, **__: object) -> NoReturn:
    """Replaces `ArgumentParser.parse_args`."""
    raise AssertionError("reads the command line while imported")


if __name__ == "__main__":
    sys.meta_path[:] = [BlockingFinder(finder) for finder in sys.meta_path]  # type: ignore[misc]
    sys.dont_write_bytecode = True
    import argparse

    argparse.ArgumentParser.parse_args = refuse_to_parse  # type: ignore[method-assign]
    sys.addaudithook(record_effect)
    heavy = []
    for name in (*sys.argv[1:], "--"):
        if name == "--":
            heavy.append(sorted(HEAVY & set(sys.modules)))
            continue
        before, current_module = process_state(), name
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a module raises is reported
            effects.append(f"{name} cannot be imported: {type(error).__name__}: {error}")
        current_module = ""
        if (after := process_state()) != before:
            effects.append(f"{name} changes {before} into {after}")
    print(json.dumps({"effects": effects, "heavy": heavy}), flush=True)
    os._exit(0)  # without taking apart all that was imported
