"""tdnet eval and tdnet report."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tdnet import save_checkpoint
from tdnet.architectures import MODELS
from tdnet.cli.app import app
from tdnet.evaluation.evaluate import evaluate
from tdnet.evaluation.metrics import Interval
from tdnet.evaluation.report import Row, markdown, read_results, summary_rows, write_report
from tdnet.evaluation.results import Evaluation, Latency, SteadyShare, pooled


def invoke(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_checkpoint(tiny, path)
    return path


def test_eval_says_what_evaluate_measures(checkpoint, tiny, videos, videos_root, tmp_path):
    pytest.importorskip("cv2")
    out = tmp_path / "tiny.json"
    options = ["--data", "folder", "--root", videos_root, "--size", "25x41", "--gap", 2]
    result = invoke("eval", checkpoint, *options, "--device", "cpu", "--out", out)
    assert result.exit_code == 0, result.output
    found = Evaluation.from_json(out.read_text())
    expected = evaluate(tiny, videos, size=(25, 41), gap=2, data="folder val")
    same = dataclasses.replace(expected, latency=found.latency)
    assert found == same
    for text in ("td2-bise34 on folder val", "mIoU", f"{100 * found.miou:.1f}", "TC (DIS)", "VC8"):
        assert text in result.stdout
    assert "25x41, every 2. frame" in result.stdout
    rows = [line.split()[1::2] for line in result.stdout.splitlines()]
    for name, iou in zip(("sky", "road", "car"), found.class_iou, strict=True):
        assert [name, f"{100 * iou:.1f}"] in rows


def write_frame(root, label):
    """A video of one black frame, all of whose pixels have one label."""
    for kind, colour in (("images", (0, 0, 0)), ("labels", label)):
        (root / "val" / "a" / kind).mkdir(parents=True)
        mode = "RGB" if kind == "images" else "L"
        Image.new(mode, (49, 33), colour).save(root / "val" / "a" / kind / "1.png")
    (root / "classes.txt").write_text("sky\nroad\ncar\n")
    return root


def test_numbers_are_shown_even_if_they_cannot_be_written(
    checkpoint, videos_root, tmp_path, monkeypatch
):
    pytest.importorskip("cv2")

    def full(*arguments, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    options = ["--data", "folder", "--root", videos_root, "--device", "cpu", "--orders", "first"]
    result = invoke("eval", checkpoint, *options, "--out", tmp_path / "tiny.json")
    assert result.exit_code == 1
    assert "tdnet: error: no space left on device" in result.stderr
    assert "mIoU" in result.stdout


def test_single_frames_need_no_opencv(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    root = write_frame(tmp_path, label=0)
    result = invoke("eval", checkpoint, "--data", "folder", "--root", root, "--device", "cpu")
    assert result.exit_code == 0, result.output


def test_failures_of_eval_are_one_line(checkpoint, videos_root, tmp_path, monkeypatch):
    pytest.importorskip("cv2")
    ignored = write_frame(tmp_path / "ignored", label=255)
    write_frame(tmp_path, label=0)
    (tmp_path / "val" / "a" / "images" / "1.png").write_text("no image")
    usual = {"--data": "folder", "--root": videos_root, "--device": "cpu"}
    for changes, message in (
        ({"--data": "nothing"}, "data set: expected one of camvid, cityscapes, "),
        ({"--root": tmp_path / "val"}, "classes.txt: no such file"),
        ({"--root": tmp_path}, "1.png: not a readable image"),
        ({"--split": "test"}, "test: no such folder"),
        ({"--size": "5"}, "--size: expected HEIGHTxWIDTH"),
        ({"--orders": "some"}, "orders: expected one of all, first, got 'some'"),
        ({"--out": tmp_path / "none" / "x.json"}, "there is no folder"),
        ({"--out": tmp_path}, "expected a file, got a folder"),
        ({"--root": ignored}, "videos: expected labelled pixels, got none in folder val"),
    ):
        options = [part for option in (usual | changes).items() for part in option]
        result = invoke("eval", checkpoint, *options)
        assert result.exit_code == 1, message
        (line,) = [line for line in result.stderr.splitlines() if "error" in line]
        assert message in line
    monkeypatch.setitem(sys.modules, "cv2", None)
    result = invoke("eval", checkpoint, *(part for option in usual.items() for part in option))
    assert (
        "tdnet: error: optical flow needs cv2: pip install opencv-python-headless" in result.stderr
    )


# --- Report --------------------------------------------------------------------------------------


def result_of(right, latency=20.0, tc=0.8, data="folder val"):
    """Of two classes, in ten frames; of each class a share of 100 pixels is right."""
    hits = np.full(10, round(100 * right)) + np.arange(10) % 2
    frames = np.array([[[h, 100 - h], [100 - h, h]] for h in hits], np.int32)
    return Evaluation(
        model="td4-psp18",
        data=data,
        class_names=("a", "b|c"),
        size=None,
        gap=1,
        frames=10,
        miou=right,
        miou_interval=Interval(right - 0.1, right + 0.1),
        miou_of_orders=(right,),
        mean_accuracy=right,
        pixel_accuracy=right,
        class_iou=(right, None),
        tc=tc,
        tc_seen=tc,
        vc=(SteadyShare(8, 3, 0.9, 0.8), SteadyShare(16, 0, None, None)),
        latency=None if latency is None else Latency(latency, 25, 30, 9),
        backend="cpu",
        confusions=frames[None],
    )


def test_a_report_compares_with_its_first_row():
    other = result_of(0.6)
    results = [
        ("one", result_of(0.5)),
        ("two", result_of(0.6, latency=None, tc=None)),
        ("far", result_of(0.7, data="camvid val")),
        (
            "other",
            dataclasses.replace(other, confusions=other.confusions * [[2], [1]]),
        ),
    ]
    rows = [Row(name, (result,)) for name, result in results]
    head, _, one, two, far, other = markdown(rows).split("\n\n")[0].splitlines()
    assert head.count("|") == one.count("|")
    assert "| 50.0 [40.0, 60.0] | - | 50.0 | 80.0 | 80.0 | 90.0 (80.0) | - |" in one
    assert "20.0 / 25.0 / 30.0" in one
    difference = two.split(" | ")[3]
    # 60.5 of 139.5 pixels against 50.5 of 149.5.
    assert difference.startswith("+9.6 [+9.")
    assert far.split(" | ")[3] == "-"
    # As many frames of the same name, with other labels.
    assert other.split(" | ")[3] == "-"


def test_the_summary_says_how_a_model_differs_from_its_row():
    """Older results do not tell."""
    plain = result_of(0.5)
    assert "built with" not in dict(summary_rows(plain))
    row = dataclasses.replace(MODELS["td4-psp18"], num_classes=2)
    told = dataclasses.replace(plain, config=row, surviving_paths=4, settled_frames=8)
    assert "built with" not in dict(summary_rows(told))
    assert dict(summary_rows(told))["frames scored"] == "10, of which 8 had a full past"
    changed = dataclasses.replace(row, norm_size=(9, 13), aggregation="add")
    told = dataclasses.replace(told, config=changed, surviving_paths=2)
    shown = "norm_size=(9, 13), aggregation='add', surviving_paths=2"
    assert dict(summary_rows(told))["built with"] == shown
    assert Evaluation.from_json(told.to_json()) == told


def test_results_of_older_versions_are_read():
    told = json.loads(result_of(0.5).to_json())
    for name in ("config", "surviving_paths", "settled_frames"):
        del told[name]
    assert Evaluation.from_json(json.dumps(told)) == result_of(0.5)


def test_report_writes_a_table_and_a_plot(tmp_path):
    pytest.importorskip("matplotlib")
    for name, result in (("one", result_of(0.5)), ("two", result_of(0.6, latency=None, tc=None))):
        (tmp_path / f"{name}.json").write_text(result.to_json())
    out = tmp_path / "docs" / "results"
    result = invoke("report", tmp_path / "one.json", tmp_path / "two.json", "-o", out)
    assert result.exit_code == 0, result.output
    text = (out / "results.md").read_text()
    assert text.startswith("|  | data | mIoU |")
    assert "| two | folder val | 60.0 [50.0, 70.0] |" in text
    assert "(results.png)" in text
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "bad.json").write_text(json.dumps({"format": "other"}))
    for paths, message in (
        (["one.json", "one.json"], "one.json: expected another name for each file, got one twice"),
        (["bad.json"], "bad.json: expected a result of tdnet eval"),
        (["none.json"], "No such file"),
    ):
        result = invoke("report", *(tmp_path / path for path in paths), "-o", out)
        assert result.exit_code == 1
        assert message in result.stderr


def columns(rows):
    """Cells of each row of a table by their heads."""
    head, _, *lines = [line.split(" | ") for line in markdown(rows).split("\n\n")[0].splitlines()]
    return [dict(zip(head, line, strict=True)) for line in lines]


def test_a_folder_is_a_row_of_several_trainings(tmp_path):
    """Compared over frames and, seed by seed, over trainings."""
    for name, mious in (("one", (0.5, 0.52)), ("two", (0.6, 0.64)), ("alone", (0.6,))):
        (tmp_path / name).mkdir()
        for seed, miou in enumerate(mious):
            (tmp_path / name / f"seed-{seed}.json").write_text(result_of(miou).to_json())
    rows = read_results([tmp_path / name for name in ("one", "two", "alone")])
    one, two, alone = columns(rows)
    assert two["mIoU"].startswith("62.0 [")
    assert two["against the first"].startswith("+10.8 [+10.")
    # 10 and 12 points more: 11 plus or minus 12.706 times 1.
    assert two["over trainings"] == "+11.0 [-1.7, +23.7]"
    assert two["of each"] == "60.0, 64.0"
    assert one["over trainings"] == alone["over trainings"] == "-"
    assert "Student's t" in markdown(rows)
    assert "Student's t" not in markdown(rows[2:])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: expected results of tdnet eval, got a folder"):
        read_results([tmp_path / "empty"])


def test_trainings_of_one_row_are_of_one_model_on_the_same_frames():
    first, second = result_of(0.5), result_of(0.6)
    both = pooled([first, second])
    assert (both.miou, both.miou_of_orders, both.class_iou) == (0.55, (0.5, 0.6), (0.55, None))
    assert (both.latency, both.tc) == (Latency(20, 25, 30, 18), pytest.approx(0.8))
    # The mean IoU of the counts, 50.5 of 149.5 and 60.5 of 139.5.
    assert both.miou_interval.low == pytest.approx((50.5 / 149.5 + 60.5 / 139.5) / 2)
    assert pooled([first, result_of(0.6, latency=None, tc=None)]).tc is None
    for change, message in (
        ({"gap": 2}, "gap 1 in all, got 2"),
        ({"data": "other"}, "the frames of folder val, got others"),
    ):
        with pytest.raises(ValueError, match=f"results: expected {message}"):
            pooled([first, dataclasses.replace(second, **change)])


def test_rows_of_several_curves_are_compared_with_the_first_of_their_own(tmp_path):
    pytest.importorskip("matplotlib")
    mious = {("a", "1"): 0.5, ("a", "2"): 0.6, ("b", "1"): 0.7, ("b", "2"): 0.7}
    rows = [
        Row(f"{curve}, {place}", (result_of(miou),), curve, place, {"paper": str(miou)})
        for (curve, place), miou in mious.items()
    ]
    found = columns(rows)
    assert [row["paper"] for row in found] == ["0.5", "0.6", "0.7", "0.7"]
    differences = [row["against the first"] for row in found]
    assert differences[0] == differences[2] == "-"
    assert differences[1].startswith("+9.6")
    assert differences[3] == "+0.0 [+0.0, +0.0]"
    assert "first of its kind: a, 1; b, 1." in markdown(rows)
    table, plot = write_report(rows, tmp_path, "What it is.")
    assert table.read_text().startswith("What it is.\n\n| ")
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_a_table_and_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "one.json").write_text(result_of(0.5).to_json())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = invoke("report", tmp_path / "one.json", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "a plot needs matplotlib: pip install matplotlib" in result.stderr
    text = (tmp_path / "out" / "results.md").read_text()
    assert "| one | folder val |" in text
    assert "results.png" not in text
