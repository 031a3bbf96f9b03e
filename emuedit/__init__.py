"""An open, complete Emu Edit: it generates its own edit pairs, trains one editor on them, measures it and registers it.

from emuedit import Editor

editor = Editor.load("models")                       # a folder, a registered model or a hub id
edited = editor.edit(image, "make the circle red")   # PIL images or arrays
"""

import sys
from typing import TYPE_CHECKING, Any

from emuedit.name_hints import RenamedModules

if TYPE_CHECKING:
    from emuedit.editor.package import Editor
    from emuedit.editor.settings import EditSettings

__all__ = ["EditSettings", "Editor"]

sys.meta_path.insert(0, RenamedModules())


def __getattr__(name: str) -> Any:
    """`Editor` and `EditSettings`, imported when they are first used: importing `emuedit` itself takes milliseconds."""
    if name == "Editor":
        from emuedit.editor.package import Editor

        return Editor
    if name == "EditSettings":
        from emuedit.editor.settings import EditSettings

        return EditSettings
    raise AttributeError(f"module 'emuedit' has no attribute {name!r}")
