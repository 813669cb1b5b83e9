import subprocess
import sys

import pytest

from tdnet.data.catalog import DATA_SETS, labelled_videos
from tdnet.data.clips import windows
from tdnet.data.nyud import nyud


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_names_are_looked_up(videos_folder):
    assert labelled_videos("folder", videos_folder, "train").class_names == ("road", "sky", "rest")
    for name in DATA_SETS:
        with pytest.raises(ValueError, match="no such f"):
            labelled_videos(name, videos_folder / "nowhere", "train")
    with pytest.raises(ValueError, match=r"data set: expected one of camvid, .*, got 'kitti'"):
        labelled_videos("kitti", videos_folder, "train")


def test_no_module_imports_what_only_training_needs():
    code = """if True:
        import importlib, pkgutil, sys, tdnet.data
        for module in pkgutil.iter_modules(tdnet.data.__path__, "tdnet.data."):
            importlib.import_module(module.name)
        assert not {"torchvision", "cv2"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nyud(tmp_path):
    scene = "train/bedroom_0001"
    touch(tmp_path, *(f"{scene}/images/{number:06d}.jpg" for number in (*range(7, 13), 60, 61)))
    touch(tmp_path, f"{scene}/labels/000012.png", f"{scene}/labels/000061.png")
    touch(tmp_path, "train/cafe/images/r-1.png", "train/cafe/labels/r-1.png")
    videos = nyud(tmp_path, "train")
    assert [len(clip) for clip in videos.clips] == [6, 2, 1]
    assert [window[-1].labels.name for window in windows(videos.clips, 4)] == ["000012.png"]
    assert len(videos.class_names) == len(set(videos.class_names)) == 40
    table = videos.class_table()
    assert (table[0], table[1], table[40], table[41], table[255]) == (255, 0, 39, 255, 255)
    touch(tmp_path, "train/cafe/images/last.png")
    with pytest.raises(ValueError, match=r"cafe: expected names such as 000101\.jpg, got last"):
        nyud(tmp_path, "train")


def test_flow_beside_the_labels(videos_folder):
    touch(videos_folder, "train/a/flow/3.png")
    (first, *_), _ = labelled_videos("folder", videos_folder, "train").clips
    clip = labelled_videos("folder", videos_folder, "train").clips[0]
    assert first.flow is None
    assert clip[3].flow == videos_folder / "train" / "a" / "flow" / "3.png"
    touch(videos_folder, "train/a/flow/9.png")
    with pytest.raises(ValueError, match=r"9\.png: no image of this name"):
        labelled_videos("folder", videos_folder, "train")
