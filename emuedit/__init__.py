"""An open, complete Emu Edit: generates edit pairs, trains one editor on them, evaluates and registers it.

from emuedit import Editor

editor = Editor.load("models")                       # a folder, a registered model or a hub id
edited = editor.edit(image, "make the circle red")   # PIL images or arrays

or with the argument names of diffusers: from emuedit import EmuEditPipeline
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from emuedit.name_hints import RenamedCommands

if TYPE_CHECKING:
    from emuedit.data.file_manifest import ManifestError
    from emuedit.data.image_io import ImageError
    from emuedit.editing.api import Editor
    from emuedit.editing.edit_error import EditError, RefusedInstructionError
    from emuedit.editing.session import EditSession, SessionError
    from emuedit.editor.edit_pipeline import EmuEditPipeline
    from emuedit.editor.package_folder import PackageError
    from emuedit.editor.settings import EditSettings, SettingsError
    from emuedit.editor.task_pack import TaskPackError
    from emuedit.tasks import UnknownTaskError
    from emuedit.tracking.registry import RegistryError

__all__ = [
    "EditError",
    "EditSession",
    "EditSettings",
    "Editor",
    "EmuEditPipeline",
    "ImageError",
    "ManifestError",
    "PackageError",
    "RefusedInstructionError",
    "RegistryError",
    "SessionError",
    "SettingsError",
    "TaskPackError",
    "UnknownTaskError",
]

sys.meta_path.append(RenamedCommands())

_MODULES = {
    "EditError": "emuedit.editing.edit_error",
    "EditSession": "emuedit.editing.session",
    "EditSettings": "emuedit.editor.settings",
    "Editor": "emuedit.editing.api",
    "EmuEditPipeline": "emuedit.editor.edit_pipeline",
    "ImageError": "emuedit.data.image_io",
    "ManifestError": "emuedit.data.file_manifest",
    "PackageError": "emuedit.editor.package_folder",
    "RefusedInstructionError": "emuedit.editing.edit_error",
    "RegistryError": "emuedit.tracking.registry",
    "SessionError": "emuedit.editing.session",
    "SettingsError": "emuedit.editor.settings",
    "TaskPackError": "emuedit.editor.task_pack",
    "UnknownTaskError": "emuedit.tasks",
}


def __getattr__(name: str) -> Any:
    """Import a public class on first use, so that importing `emuedit` takes milliseconds."""
    if name not in _MODULES:
        raise AttributeError(f"module 'emuedit' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """The public classes, also those not yet imported, and the imported modules, for `help` and completion."""
    modules = {name for name in globals() if f"{__name__}.{name}" in sys.modules}
    return sorted({*__all__, *modules, *(name for name in globals() if name.startswith("__"))})
