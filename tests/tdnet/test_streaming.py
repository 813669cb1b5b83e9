import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tdnet import VideoSegmenter, build_model, preprocessing, streaming
from tdnet.models import ModelConfig, aggregation
from tdnet.preprocessing import MEAN, STANDARD_DEVIATION

HEIGHT, WIDTH = 41, 65


@pytest.fixture(scope="module")
def td4(device):
    torch.manual_seed(0)
    return build_model("td4-psp18", 6).to(device)


@pytest.fixture(scope="module")
def pspnet(device):
    torch.manual_seed(0)
    return build_model("pspnet-18", 6).to(device)


def video(count, size=(HEIGHT, WIDTH), seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]


def images(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 3, HEIGHT, WIDTH, generator=generator) for _ in range(count)]


def normalised(frame, size=None):
    x = torch.tensor(frame).permute(2, 0, 1)[None].float()
    if size is not None:
        x = F.interpolate(x, size, mode="bilinear", align_corners=False)
    x = x / 255
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STANDARD_DEVIATION).view(3, 1, 1)


@pytest.mark.parametrize("name", ["td4", "pspnet"])
def test_step_labels_are_the_best_logits(name, request):
    model = request.getfixturevalue(name)
    by_step, by_logits = VideoSegmenter(model), VideoSegmenter(model)
    seen = set()
    for frame in video(6):
        labels = by_step.step(frame)
        logits = by_logits.logits(normalised(frame)).cpu()
        assert labels.dtype == np.uint8
        assert labels.shape == (HEIGHT, WIDTH)
        assert logits.shape == (1, 6, HEIGHT, WIDTH)
        best = logits.amax(1)[0]
        chosen = logits[0].gather(0, torch.from_numpy(labels).long()[None])[0]
        torch.testing.assert_close(chosen, best, rtol=1e-4, atol=1e-5)
        seen |= set(np.unique(labels))
    assert len(seen) > 1


def test_size_resizes_frames_but_not_labels(td4):
    size = (33, 49)
    segmenter, plain = VideoSegmenter(td4, size), VideoSegmenter(td4)
    for frame in video(5):
        labels = segmenter.step(frame)
        assert labels.shape == (HEIGHT, WIDTH)
        # The stride-8 logits are the corners-aligned samples of those at the network's size.
        coarse = plain.logits(normalised(frame, size)).cpu()[:, :, ::8, ::8]
        logits = F.interpolate(coarse, (HEIGHT, WIDTH), mode="bilinear", align_corners=True)
        chosen = logits[0].gather(0, torch.from_numpy(labels).long()[None])[0]
        torch.testing.assert_close(chosen, logits.amax(1)[0], rtol=1e-4, atol=1e-5)


def test_reset_starts_again(td4):
    segmenter = VideoSegmenter(td4)
    first = [segmenter.logits(x) for x in images(6)]
    assert not torch.equal(segmenter.logits(images(1)[0]), first[0])
    segmenter.reset()
    for x, expected in zip(images(6), first, strict=True):
        torch.testing.assert_close(segmenter.logits(x), expected)


def test_paths_take_turns_from_the_first(td4):
    order = []
    hooks = [
        path.features.backbone.register_forward_hook(lambda *_, index=index: order.append(index))
        for index, path in enumerate(td4.paths)
    ]
    segmenter = VideoSegmenter(td4)
    for x in images(6):
        segmenter.logits(x)
    segmenter.reset()
    segmenter.logits(images(1)[0])
    for hook in hooks:
        hook.remove()
    assert order == [0, 1, 2, 3, 0, 1, 0]


def test_a_video_may_start_at_any_path(td4):
    """The last frame of a window is labelled as by the forward of a clip."""
    clip = torch.stack(images(4), dim=1)
    for start in range(4):
        segmenter = VideoSegmenter(td4)
        segmenter.reset(start)
        for x in images(4):
            logits = segmenter.logits(x)
        torch.testing.assert_close(logits, td4(clip, (start + 3) % 4))
    with pytest.raises(ValueError, match="path: expected 0 to 3, got 4"):
        segmenter.reset(4)
    VideoSegmenter(build_model("pspnet-18", 3)).reset(0)


def test_two_segmenters_share_a_model(td4):
    alone = [VideoSegmenter(td4) for _ in range(2)]
    expected = [[s.logits(x) for x in images(6, seed)] for seed, s in enumerate(alone)]
    first, second = VideoSegmenter(td4), VideoSegmenter(td4)
    for index, (x, y) in enumerate(zip(images(6, 0), images(6, 1), strict=True)):
        torch.testing.assert_close(first.logits(x), expected[0][index])
        torch.testing.assert_close(second.logits(y), expected[1][index])


def test_prepare_leaves_one_attention_to_the_frame_and_changes_no_number(td4, monkeypatch):
    calls = []
    attention = aggregation.attention_propagate

    def counted(query, *rest):
        calls.append(tuple(query.shape[-2:]))
        return attention(query, *rest)

    lazy = VideoSegmenter(td4)
    expected = [lazy.logits(x) for x in images(7)]
    monkeypatch.setattr(aggregation, "attention_propagate", counted)
    eager = VideoSegmenter(td4)
    for index, x in enumerate(images(7)):
        calls.clear()
        torch.testing.assert_close(eager.logits(x), expected[index])
        # 41 x 65 pixels are 6 x 9 features, 2 x 3 when pooled.
        assert calls == ([(6, 9)] if index >= 3 else [])
        calls.clear()
        eager.prepare()
        assert calls == ([(2, 3)] * 2 if index >= 2 else [])
        eager.prepare()
        assert len(calls) == (2 if index >= 2 else 0)


def stored_numbers(value):
    if isinstance(value, torch.Tensor):
        return value.untyped_storage().nbytes()
    if isinstance(value, tuple):
        return sum(stored_numbers(item) for item in value)
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return sum(stored_numbers(getattr(value, field.name)) for field in fields)
    return 0


def test_state_is_bounded(td4):
    segmenter = VideoSegmenter(td4)
    sizes = []
    for x in images(11):
        segmenter.logits(x)
        sizes.append(stored_numbers(segmenter._state))
    assert sizes[0] > 0
    assert len(set(sizes[4:])) == 1


@pytest.mark.parametrize("size", [None, (33, 49)])
def test_change_of_frame_size_needs_a_reset(td4, size):
    segmenter = VideoSegmenter(td4, size)
    reference = VideoSegmenter(td4, size)
    frames = video(3)
    segmenter.step(frames[0])
    reference.step(frames[0])
    other = video(1, (33, 57))[0]
    with pytest.raises(ValueError, match=r"frame: expected 41x65.*got 33x57.*reset"):
        segmenter.step(other)
    np.testing.assert_array_equal(segmenter.step(frames[1]), reference.step(frames[1]))
    segmenter.reset()
    assert segmenter.step(other).shape == (33, 57)


def test_change_of_image_size_needs_a_reset(td4):
    segmenter = VideoSegmenter(td4)
    segmenter.logits(torch.zeros(1, 3, 33, 33))
    with pytest.raises(ValueError, match=r"image: expected 33x33.*got 33x34.*reset"):
        segmenter.logits(torch.zeros(1, 3, 33, 34))


@pytest.mark.parametrize("part", ["head", "hops", "upsampling", "store"])
def test_failure_leaves_the_state_alone(td4, monkeypatch, part):
    segmenter, reference = VideoSegmenter(td4), VideoSegmenter(td4)
    frames = video(8)
    for frame in frames[:5]:
        segmenter.step(frame)
        reference.step(frame)

    def fail(*_, **__):
        raise MemoryError("no memory left")

    with monkeypatch.context() as patch:
        if part == "upsampling":
            patch.setattr("tdnet.streaming.upsample_argmax", fail)
        elif part == "store":
            patch.setattr(td4, "store", fail)
        elif part == "hops":
            patch.setattr(aggregation, "attention_propagate", fail)
        else:
            patch.setattr(td4.paths[1].head, "forward", fail)
        with pytest.raises(MemoryError, match="no memory left"):
            segmenter.step(frames[5])
    for frame in frames[5:]:
        np.testing.assert_array_equal(segmenter.step(frame), reference.step(frame))
    for x in images(2):
        torch.testing.assert_close(segmenter.logits(x), reference.logits(x))


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), TypeError, "expected dtype uint8, got float32"),
        (torch.zeros(8, 8, 3), TypeError, "expected dtype torch.uint8, got torch.float32"),
        ([[0, 0, 0]], TypeError, "frame: expected .*, got list"),
        (None, TypeError, "frame: expected .*, got NoneType"),
        (np.zeros((8, 8), np.uint8), ValueError, r"expected \[H, W, 3\] .*, got \[8, 8\]"),
        (np.zeros((8, 8, 4), np.uint8), ValueError, r"expected \[H, W, 3\] .*, got \[8, 8, 4\]"),
        (np.zeros((3, 8, 8), np.uint8), ValueError, r"expected \[H, W, 3\] .*, got \[3, 8, 8\]"),
        (np.zeros((0, 8, 3), np.uint8), ValueError, r"expected \[H, W, 3\] .*, got \[0, 8, 3\]"),
    ],
)
def test_bad_frames(pspnet, frame, error, message):
    with pytest.raises(error, match=message):
        VideoSegmenter(pspnet).step(frame)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (
            torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
            TypeError,
            r"a float .*, got torch\.uint8",
        ),
        (np.zeros((1, 3, 8, 8)), TypeError, "x: expected .*, got ndarray"),
        (torch.zeros(2, 3, 8, 8), ValueError, r"x: expected \[1, 3, H, W\], got \[2, 3, 8, 8\]"),
        (torch.zeros(3, 8, 8), ValueError, r"x: expected \[1, 3, H, W\], got \[3, 8, 8\]"),
        (torch.zeros(1, 3, 0, 8), ValueError, r"x: expected \[1, 3, H, W\], got \[1, 3, 0, 8\]"),
    ],
)
def test_bad_images(pspnet, x, error, message):
    with pytest.raises(error, match=message):
        VideoSegmenter(pspnet).logits(x)


def test_frames_of_any_memory_layout(pspnet):
    segmenter = VideoSegmenter(pspnet)
    frame = video(1)[0]
    expected = segmenter.step(frame)
    read_only = frame.copy()
    read_only.flags.writeable = False
    flipped_twice = frame[::-1].copy()[::-1]
    for other in (read_only, flipped_twice, torch.from_numpy(frame), np.asfortranarray(frame)):
        np.testing.assert_array_equal(segmenter.step(other), expected)


def test_smallest_frame(td4):
    segmenter = VideoSegmenter(td4)
    for frame in video(5, (1, 1)):
        assert segmenter.step(frame).shape == (1, 1)


def test_single_frame_model_keeps_no_past(pspnet):
    segmenter = VideoSegmenter(pspnet)
    x, y = images(2)
    expected = segmenter.logits(x)
    segmenter.logits(y)
    torch.testing.assert_close(segmenter.logits(x), expected)
    assert stored_numbers(segmenter._state) == 0


def test_training_mode_is_refused(pspnet):
    segmenter = VideoSegmenter(pspnet.train())
    assert not pspnet.training
    pspnet.train()
    with pytest.raises(RuntimeError, match="training mode"):
        segmenter.step(video(1)[0])
    pspnet.eval()


def test_bad_models_and_sizes(pspnet):
    with pytest.raises(TypeError, match=r"model: expected one with the methods .*, got Linear"):
        VideoSegmenter(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"model: expected at most 256 classes .*, got 257"):
        VideoSegmenter(build_model("pspnet-18", 257))
    for size in [(0, 5), (5,), (5.0, 5)]:
        with pytest.raises(ValueError, match="expected \\(height, width\\)"):
            VideoSegmenter(pspnet, size)


class Repeating(torch.nn.Module):
    """A model of somebody else: the label of a pixel is the number of frames so far."""

    def __init__(self):
        super().__init__()
        self.config = ModelConfig("of-my-own", "resnet-18", "pyramid", 1, 1, num_classes=5)
        self.classes = torch.nn.Parameter(torch.arange(5.0).view(1, 5, 1, 1))

    def start(self, path=0):
        return path

    def label(self, image, stream):
        return -(self.classes - stream).abs().expand(1, 5, 2, 2), stream + 1

    def prepare(self, stream):
        return stream


def test_any_model_with_the_protocol_streams():
    segmenter = VideoSegmenter(Repeating())
    labels = [segmenter.step(frame) for frame in video(3)]
    assert [set(found.flatten()) for found in labels] == [{0}, {1}, {2}]
    segmenter.reset()
    assert (segmenter.step(video(1)[0]) == 0).all()


class Operators(TorchDispatchMode):
    """Notes the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*arguments, **(options or {}))


def test_no_tensor_is_made_of_numbers_after_the_first_frame(td4):
    """On a GPU that waits for the device, and cannot be captured as a graph."""
    preprocessing._statistics.cache_clear()
    segmenter = VideoSegmenter(td4, (33, 49))
    made = []
    for frame in map(torch.from_numpy, video(6)):
        with Operators() as operators:
            segmenter.step(frame)
            segmenter.prepare()
        made.append(operators.names.count("lift_fresh"))
    assert made[0] > 0  # so are they noted
    assert made[1:] == [0] * 5


class OnSecondGPU(torch.Tensor):
    """Labels that say they are on another device than the current one."""

    device = torch.device("cuda", 1)


def test_the_event_of_the_labels_is_recorded_on_their_device(monkeypatch):
    recorded = []

    class Event:
        def __init__(self, device):
            self.device = device

        def record(self, stream):
            recorded.append((self.device, stream))

    empty = torch.empty
    pinned = []

    def unpinned(*arguments, pin_memory=False, **options):
        pinned.append(pin_memory)
        return empty(*arguments, **options)

    monkeypatch.setattr(torch, "Event", Event)
    monkeypatch.setattr(torch, "empty", unpinned)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda device: f"stream of {device}")
    labels = torch.arange(6, dtype=torch.uint8).view(2, 3)
    host, _ = streaming._copy_to_host(labels.as_subclass(OnSecondGPU))
    assert torch.equal(host, labels)
    assert recorded == [(torch.device("cuda", 1), "stream of cuda:1")]
    assert pinned == [True]


@pytest.mark.needs_cuda
def test_a_frame_may_be_overwritten_once_its_labels_are_out(td4):
    frames = video(8)
    model = copy.deepcopy(td4).cuda()
    reference = VideoSegmenter(model)
    expected = [reference.step(frame) for frame in frames]
    segmenter, buffer = VideoSegmenter(model), np.empty_like(frames[0])
    for frame, labels in zip(frames, expected, strict=True):
        buffer[:] = frame
        np.testing.assert_array_equal(segmenter.step(buffer), labels)
        buffer[:] = 0
