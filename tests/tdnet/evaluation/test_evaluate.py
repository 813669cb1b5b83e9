"""A model on a tiny data set against loops written by hand."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tdnet import VideoSegmenter
from tdnet.architectures import ModelConfig
from tdnet.data.clips import LabelledFrame, LabelledVideos
from tdnet.evaluation import evaluate as evaluate_module
from tdnet.evaluation.consistency import VideoConsistency, temporal_consistency
from tdnet.evaluation.evaluate import evaluate, read_labels, streams_of
from tdnet.evaluation.metrics import confusion_matrix, mean_accuracy, mean_iou, pixel_accuracy
from tdnet.evaluation.other_memory import with_memory_of
from tdnet.evaluation.results import Evaluation
from tdnet.models import build
from tdnet.preprocessing import images_of


def pixels(path):
    return np.array(Image.open(path))


def still(frame, next_frame):
    """The flow of a camera that stands."""
    return np.zeros((*frame.shape[:2], 2), np.float32)


def half_lost(frame, next_frame):
    """On the left what goes 5 pixels to the right does not come back."""
    flow = still(frame, next_frame)
    flow[:, : flow.shape[1] // 2, 0] = 5
    return flow


@torch.inference_mode()
def labels_of(model, window, path, size=None):
    """Labels of the last of some frames, by the model's forward of a clip."""
    images = [images_of(torch.from_numpy(pixels(frame.image))[None], size) for frame in window]
    if len(images) == model.num_paths:
        frame, memory, _ = model._encode_clip(torch.stack(images, 1), path)
    else:
        frame, memory = model.encode(images[-1], path), None
    logits = model.decode(frame, memory, path)
    shape = pixels(window[-1].image).shape[:2]
    return F.interpolate(logits, shape, mode="bilinear", align_corners=True)[0].argmax(0).numpy()


def by_hand(model, videos, gap=1, size=None):
    """Confusion matrices of both orders, `[orders, frames, K, K]`, each frame on its own.

    In a clip that is streamed whole the paths take turns from its start; in others each window
    begins with the path of the order.
    """
    found = []
    for start in range(2):
        matrices = []
        for clip, is_whole in zip(videos.clips, (True, False), strict=True):
            for index, frame in enumerate(clip):
                if frame.labels is None:
                    continue
                window = clip[index - gap : index + 1 : gap] if index >= gap else [frame]
                position = index // gap if is_whole else len(window) - 1
                labels = labels_of(model, window, (start + position) % 2, size)
                matrices.append(confusion_matrix(labels, pixels(frame.labels), 3))
        found.append(matrices)
    return np.array(found)


@pytest.mark.parametrize(("gap", "size"), [(1, None), (2, None), (4, None), (1, (25, 41))])
def test_numbers_are_those_of_loops(tiny, videos, gap, size):
    result = evaluate(tiny, videos, gap=gap, size=size, flow=None)
    expected = by_hand(tiny, videos, gap, size)
    # Where two classes are as likely to within rounding, either may win.
    assert np.abs(result.confusions - expected).sum() <= 4
    sums = result.confusions.sum(1)
    assert result.miou == pytest.approx(mean_iou(sums).mean())
    assert result.miou_of_orders == pytest.approx(mean_iou(sums))
    assert result.miou_of_orders[0] != result.miou_of_orders[1]
    assert result.mean_accuracy == pytest.approx(mean_accuracy(sums).mean())
    assert result.pixel_accuracy == pytest.approx(pixel_accuracy(sums).mean())
    assert result.miou_interval.low <= result.miou <= result.miou_interval.high
    assert (result.frames, result.gap, result.size) == (7, gap, size)
    assert result.tc is result.tc_seen is None
    assert (result.config, result.surviving_paths) == (tiny.config, 2)
    # All but the first of each stream.
    assert result.settled_frames == {1: 6, 2: 5, 4: 2}[gap]


def test_with_one_surviving_path_every_frame_has_a_full_past(tiny, videos):
    tiny.surviving_paths = 1
    try:
        result = evaluate(tiny, videos, flow=None)
    finally:
        tiny.surviving_paths = 2
    assert (result.surviving_paths, result.settled_frames) == (1, result.frames)


def test_the_first_order_alone(tiny, videos):
    both = evaluate(tiny, videos, flow=None)
    first = evaluate(tiny, videos, orders="first", flow=None)
    np.testing.assert_array_equal(first.confusions, both.confusions[:1])
    assert first.miou_of_orders == both.miou_of_orders[:1]


def test_a_shared_sub_network_has_one_order(tiny, videos):
    torch.manual_seed(0)
    shared = build(dataclasses.replace(tiny.config, shared=True))
    assert len(evaluate(shared, videos, flow=None).miou_of_orders) == 1


def test_steadiness_is_that_of_streamed_clips(tiny, videos, monkeypatch):
    monkeypatch.setattr(evaluate_module, "VC_WINDOWS", (2, 3))
    result = evaluate(tiny, videos, flow=half_lost)
    (clip, _) = videos.clips
    tcs, tcs_seen, shares = [], [], {2: [], 3: []}
    for start in range(2):
        segmenter = VideoSegmenter(tiny)
        segmenter.reset(start)
        labels = [segmenter.step(pixels(frame.image)) for frame in clip]
        flows = [half_lost(x, x) for x in labels[1:]]
        tcs.append(temporal_consistency(labels, flows, 3))
        seen = [flow[..., 0] == 0 for flow in flows]
        tcs_seen.append(temporal_consistency(labels, flows, 3, seen))
        for window, found in shares.items():
            vc = VideoConsistency(window)
            for predicted, frame in zip(labels, clip, strict=True):
                vc.add(predicted, pixels(frame.labels))
            found.append((vc.steady, vc.steady_and_right))
    assert result.tc == pytest.approx(np.mean(tcs))
    assert result.tc_seen == pytest.approx(np.mean(tcs_seen))
    assert result.tc_seen != pytest.approx(result.tc, abs=1e-3)
    for share in result.vc:
        steady, right = np.mean(np.array(shares[share.window]), (0, 2))
        assert (share.steady, share.steady_and_right) == pytest.approx((steady, right))
    assert [(share.window, share.windows) for share in result.vc] == [(2, 4), (3, 3)]


def test_flow_is_asked_for_there_and_back(videos):
    asked = []

    def noted(frame, next_frame):
        asked.append((frame.tobytes(), next_frame.tobytes()))
        return still(frame, next_frame)

    evaluate(Wheel(2), videos, flow=noted)
    images = [pixels(frame.image).tobytes() for frame in videos.clips[0]]
    pairs = list(itertools.pairwise(images))
    assert asked == [pair for a, b in pairs for pair in ((a, b), (b, a))]


def test_latency_is_of_frames_with_a_past(tiny, videos):
    """4 of the dense clip and 2 windows, in 2 orders."""
    ticks = []
    result = evaluate(tiny, videos, flow=None, progress=lambda *tick: ticks.append(tick))
    assert result.latency.frames == 2 * (4 + 2)
    assert 0 < result.latency.mean_ms <= result.latency.max_ms
    assert result.latency.p95_ms <= result.latency.max_ms
    assert ticks == [(done, 9) for done in range(1, 10)]
    # Single frames have no past in a network of two paths.
    lone = dataclasses.replace(videos, clips=((videos.clips[0][0],),))
    assert evaluate(tiny, lone, flow=None).latency is None


def test_labels_are_compared_at_the_resolution_of_the_truth(tiny, videos, tmp_path):
    """Each pixel of the truth twice as high and wide: counts are four times those."""
    large = []
    for frame in videos.clips[0][:2]:
        path = tmp_path / frame.labels.name
        Image.fromarray(pixels(frame.labels).repeat(2, 0).repeat(2, 1)).save(path)
        large.append(LabelledFrame(frame.image, path))
    plain = dataclasses.replace(videos, clips=(videos.clips[0][:2],))
    enlarged = dataclasses.replace(videos, clips=(tuple(large),))
    counts = [evaluate(tiny, v, flow=None).confusions for v in (plain, enlarged)]
    np.testing.assert_array_equal(4 * counts[0], counts[1])


def test_results_are_read_back(tiny, videos):
    result = evaluate(tiny, videos, size=(25, 41), flow=still, data="tiny val")
    text = result.to_json()
    again = Evaluation.from_json(text)
    assert again == result
    np.testing.assert_array_equal(again.confusions, result.confusions)
    told = json.loads(text)
    assert told["miou"] == result.miou
    assert told["data"] == "tiny val"
    damaged = text.replace('"zlib": "', '"zlib": "!')
    for bad in ("", "[]", "{}", text.replace("tdnet-evaluation-1", "x"), damaged):
        with pytest.raises(ValueError, match="expected a result of tdnet eval, got something else"):
            Evaluation.from_json(bad)


# --- Streams -------------------------------------------------------------------------------------


def streams(text, *arguments):
    """A letter a frame; capitals are labelled."""
    clip = tuple(LabelledFrame(letter, letter if letter.isupper() else None) for letter in text)
    return [
        ("".join(f.image if f.labels else f.image.lower() for f in stream.frames), stream.is_whole)
        for stream in streams_of([clip], *arguments)
    ]


def test_dense_clips_are_streamed_whole():
    assert streams("ABCDE", 4) == [("ABCDE", True)]
    assert streams("aBcD", 4) == [("aBcD", True)]
    assert streams("ABCDE", 2, 2) == [("ACE", True), ("BD", True)]
    assert streams("AB", 2, 5) == [("A", True), ("B", True)]


def test_of_others_windows_end_with_a_labelled_frame():
    assert streams("abcdEfgHi", 3) == [("cdE", False), ("fgH", False)]
    assert streams("abcDeFghi", 3) == [("bcD", False), ("deF", False)]
    assert streams("abcdEfgHi", 1) == [("E", False), ("H", False)]
    assert streams("abcdEfgHi", 3, 2) == [("acE", False), ("dfH", False)]
    assert streams("aBcdefg", 3) == [("aB", False)]
    assert streams("abc", 3) == []


# --- Other models --------------------------------------------------------------------------------


class Wheel(torch.nn.Module):
    """A model of somebody else: it says class 0, 1, 2, 0, ... frame by frame."""

    def __init__(self, num_paths=1):
        super().__init__()
        self.config = ModelConfig("wheel", "resnet-18", "pyramid", num_paths, 1, num_classes=3)
        self.classes = torch.nn.Parameter(torch.arange(3.0).view(1, 3, 1, 1))

    def start(self, path=0):
        return path

    def label(self, image, stream):
        return -(self.classes - stream % 3).abs().expand(1, 3, 2, 2), stream + 1

    def prepare(self, stream):
        return stream


def test_any_streaming_model_is_measured(videos):
    result = evaluate(Wheel(), videos, flow=still)
    predicted = result.confusions[0].sum(1).argmax(-1)
    # 5 frames streamed, then two windows of one frame.
    assert predicted.tolist() == [0, 1, 2, 0, 1, 0, 0]
    assert result.tc == 0
    three = evaluate(Wheel(3), videos, flow=None)
    assert three.confusions[1].sum(1).argmax(-1).tolist() == [1, 2, 0, 1, 2, 0, 0]


def test_memory_of_another_moment_changes_what_a_model_says(tiny, videos):
    images = [images_of(torch.from_numpy(pixels(f.image))[None]) for f in videos.clips[0]]
    own, other = VideoSegmenter(tiny), VideoSegmenter(with_memory_of(tiny, 2))
    with torch.inference_mode():
        for index, image in enumerate(images):
            found, expected = other.logits(image), own.logits(image)
            if index < 3:
                torch.testing.assert_close(found, expected)
                continue
            path = index % 2
            window = [tiny.store(tiny.encode(images[index - 3], 1 - path), 1 - path)]
            coarse = tiny.decode(tiny.encode(image, path), tiny.propagate(window, path), path)
            torch.testing.assert_close(found[..., ::8, ::8], coarse)
            assert not torch.allclose(found, expected)


@pytest.mark.parametrize("frames", [-2, 0, 1, 3])
def test_memory_is_of_the_same_path(tiny, frames):
    with pytest.raises(ValueError, match=f"frames_ago: expected a positive .* 2, got {frames}"):
        with_memory_of(tiny, frames)


# --- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gap": 0}, "gap: expected at least 1, got 0"),
        ({"orders": "some"}, "orders: expected one of all, first, got 'some'"),
        ({"size": (0, 5)}, "size: expected"),
    ],
)
def test_bad_options(tiny, videos, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(tiny, videos, flow=None, **options)


def test_videos_that_do_not_fit(tiny, videos):
    other = LabelledVideos(videos.clips, ("road", "rest"), {0: 0, 1: 1})
    with pytest.raises(ValueError, match="videos: expected 3 classes as the model, got 2"):
        evaluate(tiny, other)
    (clip, _) = videos.clips
    bare = dataclasses.replace(videos, clips=((LabelledFrame(clip[0].image),),))
    with pytest.raises(ValueError, match="videos: expected labelled frames, got none"):
        evaluate(tiny, bare)


def test_videos_without_a_labelled_pixel(tiny, videos):
    ignored = dataclasses.replace(videos, classes={})
    for data, message in (("", "got none$"), ("camvid val", "got none in camvid val$")):
        with pytest.raises(ValueError, match=f"videos: expected labelled pixels, {message}"):
            evaluate(tiny, ignored, data=data)


def test_bad_label_maps(tmp_path):
    table = np.arange(256, dtype=np.uint8)
    Image.new("RGB", (4, 4)).save(tmp_path / "rgb.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"rgb\.png: expected label numbers of 8 bits, got .*RGB"):
        read_labels(tmp_path / "rgb.png", table)
    with pytest.raises(ValueError, match=r"text\.png"):
        read_labels(tmp_path / "text.png", table)
