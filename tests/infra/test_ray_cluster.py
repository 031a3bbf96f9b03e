"""infra/ray/cluster.yaml, as Ray's own launcher reads it."""

import warnings

import pytest
import yaml

from tests.repository import ROOT


@pytest.mark.slow
def test_the_launcher_of_ray_accepts_the_cluster() -> None:
    content = yaml.safe_load((ROOT / "infra/ray/cluster.yaml").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.autoscaler._private.util import prepare_config, validate_config

        validate_config(prepare_config(dict(content)))
    assert content["max_workers"] == len(content["provider"]["worker_ips"])
    starts = [command for key in ("head", "worker") for command in content[f"{key}_start_ray_commands"] if "ray start" in command]
    assert len(starts) == 2
    assert all("--disable-usage-stats" in command for command in starts)
