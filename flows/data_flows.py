"""The flow `refresh-data`: run the stages up to the kept pairs, without training, and optionally push the data."""

from pathlib import Path
from typing import Any

from prefect import flow

from flows import dvc_graph, publication
from flows.pipeline import run_stages
from flows.run_reason import complete_reason


@flow(name="refresh-data", validate_parameters=True)
def refresh_data(target: str, reason: str = "", push: bool = False) -> dict[str, Any]:
    """Run the stages up to `target` that are out of date.

    reason: why it runs, see `run_reason`. push: whether to push the data to the remote afterwards.
    """
    root, why = Path.cwd(), complete_reason(reason)
    print(f"== {why}", flush=True)
    if push:
        publication.check_remote(root)
    graph = dvc_graph.read(root)
    stages = graph.up_to(target)
    stale = {name: reasons for name, reasons in graph.stale().items() if name in stages}
    if not stale:
        print(f"== skipped: the {len(stages)} stages up to {target} are up to date", flush=True)
    seconds = run_stages(graph, stale, {}, force=False, max_parallel=1) if stale else {}
    if push:  # including data that an earlier run could not push
        publication.push_data(root)
    return {"stages": seconds, "skipped": sorted(stages - set(seconds))}
