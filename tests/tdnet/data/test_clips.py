"""Clips of data sets in their layouts, of empty files, and the windows of clips."""

from pathlib import Path

import pytest

from tdnet.data.camvid import camvid
from tdnet.data.cityscapes import cityscapes
from tdnet.data.clips import LabelledFrame, cut, windows
from tdnet.data.folder import folder


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(clip):
    return [frame.image.name for frame in clip]


def clip_of(text):
    """A letter a frame; capitals are labelled."""
    return tuple(
        LabelledFrame(Path(letter), Path(letter) if letter.isupper() else None) for letter in text
    )


def texts(found):
    return ["".join(names(window)) for window in found]


def test_windows_end_with_a_labelled_frame():
    clips = [clip_of("abCdeF"), clip_of("GhI"), clip_of("J")]
    assert texts(windows(clips, 1)) == ["C", "F", "G", "I", "J"]
    assert texts(windows(clips, 3)) == ["abC", "deF", "GhI"]
    assert texts(windows(clips, 2, step=2)) == ["aC", "dF", "GI"]
    assert texts(windows(clips, 3, step=2)) == ["bdF"]
    assert windows(clips, 7) == []


@pytest.mark.parametrize("bad", ["length", "step"])
def test_windows_of_nothing(bad):
    with pytest.raises(ValueError, match=f"{bad}: expected at least 1, got 0"):
        windows([], **({"length": 2, "step": 1} | {bad: 0}))


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([], []),
        ([5], [[5]]),
        ([30, 60, 90, 4350, 4380], [[30, 60, 90], [4350, 4380]]),
        ([840, 870, 901, 930], [[840, 870, 901, 930]]),
        ([90, 30, 60], [[30, 60, 90]]),
        # From two frames a second to one.
        ([1, 3, 5, 36, 66], [[1, 3, 5], [36, 66]]),
        # From one to two: still one shot, and a window that is not even.
        ([1, 31, 33, 35], [[1, 31, 33, 35]]),
    ],
)
def test_cuts(numbers, expected):
    found = cut([(number, LabelledFrame(Path(str(number)))) for number in numbers], 31)
    assert [[int(name) for name in names(clip)] for clip in found] == expected


def test_camvid(tmp_path):
    files = ["0006R0_f00930", "0006R0_f00960", "0016E5_02400", "0016E5_04350", "0016E5_04380"]
    touch(tmp_path, *(f"train/{name}.png" for name in files))
    touch(tmp_path, *(f"trainannot/{name}.png" for name in files))
    videos = camvid(tmp_path, "train")
    assert [len(clip) for clip in videos.clips] == [2, 1, 2]
    assert all(f.labels.parent.name == "trainannot" for clip in videos.clips for f in clip)
    assert len(videos.class_names) == 11
    table = videos.class_table()
    assert table[:13] == [*range(11), 255, 255]
    assert len(table) == 256
    (tmp_path / "trainannot" / "0016E5_04350.png").unlink()
    with pytest.raises(ValueError, match=r"0016E5_04350\.png: no label map of this name"):
        camvid(tmp_path, "train")
    with pytest.raises(ValueError, match="val: no such folder"):
        camvid(tmp_path, "val")


def test_cityscapes(tmp_path):
    where = "leftImg8bit_sequence/val/ulm"
    numbers = [*range(30), *range(40, 52)]
    touch(tmp_path, *(f"{where}/ulm_000003_{n:06d}_leftImg8bit.png" for n in numbers))
    touch(tmp_path, "gtFine/val/ulm/ulm_000003_000019_gtFine_labelIds.png")
    touch(tmp_path, "gtFine/val/ulm/ulm_000003_000019_gtFine_color.png")
    videos = cityscapes(tmp_path, "val")
    assert [len(clip) for clip in videos.clips] == [30, 12]
    ((*_, last),) = windows(videos.clips, 4)
    assert last.image.name == "ulm_000003_000019_leftImg8bit.png"
    table = videos.class_table()
    assert (table[7], table[33], table[0], table[255], table[29]) == (0, 18, 255, 255, 255)
    assert sorted(set(table)) == [*range(19), 255]
    touch(tmp_path, "gtFine/val/ulm/ulm_000003_000035_gtFine_labelIds.png")
    with pytest.raises(ValueError, match=r"000035_gtFine_labelIds\.png: no image of this frame"):
        cityscapes(tmp_path, "val")


def test_cityscapes_without_its_sequences(tmp_path):
    touch(tmp_path, "leftImg8bit/val/ulm/ulm_000003_000019_leftImg8bit.png")
    touch(tmp_path, "gtFine/val/ulm/ulm_000003_000019_gtFine_labelIds.png")
    videos = cityscapes(tmp_path, "val")
    assert [len(clip) for clip in videos.clips] == [1]
    assert len(windows(videos.clips, 1)) == 1


def test_a_folder_of_ones_own(tmp_path):
    (tmp_path / "classes.txt").write_text("road\n\n rest \n")
    touch(tmp_path, *(f"train/a/images/{n}.jpg" for n in (2, 10, 1)), "train/a/labels/10.png")
    touch(tmp_path, "train/b/images/x.png", "train/b/labels/x.png", "train/a/images/._1.jpg")
    videos = folder(tmp_path, "train")
    assert [names(clip) for clip in videos.clips] == [["1.jpg", "2.jpg", "10.jpg"], ["x.png"]]
    assert texts(windows(videos.clips, 2)) == ["2.jpg10.jpg"]
    assert videos.class_names == ("road", "rest")
    assert videos.class_table()[:3] == [0, 1, 255]
    touch(tmp_path, "train/b/labels/y.png")
    with pytest.raises(ValueError, match=r"y\.png: no image of this name"):
        folder(tmp_path, "train")


@pytest.mark.parametrize("text", ["", "\n", "road\nroad\n", "\n".join(map(str, range(256)))])
def test_bad_class_names(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=r"classes\.txt: expected 1 to 255 names"):
        folder(tmp_path, "train")


def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match=r"classes\.txt: no such file"):
        folder(tmp_path, "train")
    (tmp_path / "classes.txt").write_text("road")
    with pytest.raises(ValueError, match="train: no such folder"):
        folder(tmp_path, "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="train: no clip in it"):
        folder(tmp_path, "train")
