"""Run the benchmarks that are named with `--help`, all in this process; print as JSON name -> (exit status, help text)."""

import contextlib
import io
import json
import runpy
import sys
from pathlib import Path


def run_help(script: Path) -> tuple[object, str]:
    """The exit status and the output of `python bench/<name>.py --help`."""
    sys.argv = [str(script), "--help"]
    output, status = io.StringIO(), "did not exit"
    try:
        with contextlib.redirect_stdout(output):
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        status = end.code
    return status, output.getvalue()


if __name__ == "__main__":
    scripts = [Path(name) for name in sys.argv[1:]]
    sys.path.insert(0, str(scripts[0].parent))
    print(json.dumps({script.name: run_help(script) for script in scripts}))
