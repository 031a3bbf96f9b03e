from pathlib import Path

import numpy as np
import pytest

from emuedit.data.png import decode_png
from toyworld import snapshot
from toyworld.scenes import render
from toyworld.scenes.caption_grammar import all_captions
from toyworld.scenes.scene import generate_scenes, scene_numbers


def test_snapshot_writes_a_held_out_scene(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["snapshot", str(tmp_path / "in.png"), "--scene", "4"])
    snapshot.main()
    scene = generate_scenes(scene_numbers("held_out", 4, 1))
    assert np.array_equal(decode_png((tmp_path / "in.png").read_bytes()), render.images(scene)[0])
    assert all_captions(scene)[0] in capsys.readouterr().out
