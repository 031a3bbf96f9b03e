"""Importing this imports what takes a process ten seconds, without garbage collection, and leaves it out of every later one.

`warm_server` names it as the module to import. Nothing here imports `emuedit.data.shards`, which `paused_stage` changes.
"""

import gc
import importlib

NAMES = (
    "emuedit.editor.edit_pipeline", "pandas", "pyarrow.parquet", "pytest",
    *(f"transformers.models.{name}.modeling_{name}" for name in ("dinov2", "owlvit", "t5")),
)  # fmt: skip

gc.disable()
for name in NAMES:
    importlib.import_module(name)
gc.freeze()
gc.enable()
