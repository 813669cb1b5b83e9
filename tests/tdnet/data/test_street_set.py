import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tdnet.data.augment import evaluation_transform
from tdnet.data.catalog import labelled_videos
from tdnet.data.flow import read_flow
from tdnet.data.palette import CLASS_NAMES
from tdnet.data.street_set import write_street_set
from tdnet.data.synthetic import street_clip_with_flow
from tdnet.data.window_dataset import WindowDataset

SIZE = (32, 64)
ROOT = Path(__file__).parents[3]
DOCUMENT = ROOT / "docs" / "data.md"
LOADING = ROOT / "benchmarks" / "loading.py"


def test_a_set_is_a_folder_of_labelled_videos(tmp_path):
    pytest.importorskip("cv2")
    write_street_set(tmp_path / "set", num_clips=2, num_frames=3, size=SIZE, seed=4)
    train, val = (labelled_videos("folder", tmp_path / "set", part) for part in ("train", "val"))
    assert [len(clip) for clip in train.clips] == [3, 3]
    assert [len(clip) for clip in val.clips] == [3]
    assert train.class_names == CLASS_NAMES
    expected = list(street_clip_with_flow(3, SIZE, seed=5))
    windows = WindowDataset(train, 2, evaluation_transform())
    assert len(windows) == 4
    assert (windows[3][1].numpy() == expected[2][0].labels).all()
    first, second, _ = train.clips[1]
    assert first.flow is None
    read = read_flow(second.flow)
    np.testing.assert_array_equal(read.valid, expected[1][1].valid)


def test_the_command_writes_the_same(tmp_path):
    pytest.importorskip("cv2")
    options = ["--clips", "1", "--frames", "2", "--size", "32x64", "--seed", "3"]
    command = [sys.executable, "-m", "tdnet.data.street_set", "set", *options]
    subprocess.run(command, check=True, cwd=tmp_path)
    write_street_set(tmp_path / "again", 1, 2, SIZE, 3)
    files = {
        root: {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (tmp_path / "set", tmp_path / "again")
    }
    one, other = files.values()
    assert one == other
    assert len(one) == 1 + 2 * 5
    with pytest.raises(ValueError, match="again: expected a new or an empty folder"):
        write_street_set(tmp_path / "again", 1, 2, SIZE, 3)


def test_the_document_and_the_measurement_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("cv2")
    pytest.importorskip("torchvision")
    monkeypatch.chdir(tmp_path)
    write_street_set("street", num_clips=1, num_frames=5, size=SIZE)
    (code,) = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    exec(code, {})
    expected = "torch.Size([2, 4, 3, 192, 384]) torch.Size([2, 192, 384])"
    assert capsys.readouterr().out.splitlines() == [expected] * 4
    options = ["--crop", "24x24", "--workers", "0", "--steps", "1", "--step-ms", "1"]
    monkeypatch.setattr(sys, "argv", ["loading.py", "folder", "street", *options])
    runpy.run_path(str(LOADING), run_name="__main__")
    assert capsys.readouterr().out.count("a step waits for its batch") == 2


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({"num_clips": 0}, "num_clips: expected at least 1, got 0"),
        ({"num_frames": 1}, "num_frames: expected at least 2, got 1"),
        ({"size": (32, 31)}, "size: expected at least 32x32, got 32x31"),
        ({"seed": -2}, "seed: expected 0 or more, got 0, -2"),
    ],
)
def test_bad_arguments_leave_nothing_behind(tmp_path, bad, expected):
    with pytest.raises(ValueError, match=expected):
        write_street_set(tmp_path / "set", **bad)
    assert not (tmp_path / "set").exists()
