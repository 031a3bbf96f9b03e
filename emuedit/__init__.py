"""An open, complete Emu Edit: generates edit pairs, trains one editor on them, evaluates and registers it.

from emuedit import Editor

editor = Editor.load("models")                       # a folder, a registered model or a hub id
edited = editor.edit(image, "make the circle red")   # PIL images or arrays

or with the argument names of diffusers: from emuedit import EmuEditPipeline
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from emuedit.name_hints import RenamedModules

if TYPE_CHECKING:
    from emuedit.editing.api import Editor
    from emuedit.editing.session import EditSession
    from emuedit.editor.edit_pipeline import EmuEditPipeline
    from emuedit.editor.settings import EditSettings

__all__ = ["EditSession", "EditSettings", "Editor", "EmuEditPipeline"]

sys.meta_path.insert(0, RenamedModules())

_MODULES = {
    "EditSession": "emuedit.editing.session",
    "EditSettings": "emuedit.editor.settings",
    "Editor": "emuedit.editing.api",
    "EmuEditPipeline": "emuedit.editor.edit_pipeline",
}


def __getattr__(name: str) -> Any:
    """Import a public class on first use, so that importing `emuedit` takes milliseconds."""
    if name not in _MODULES:
        raise AttributeError(f"module 'emuedit' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
