"""Aggregations, shared sub-networks and surviving paths."""

import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from tdnet import VideoSegmenter, build_model, load_checkpoint, save_checkpoint
from tdnet.models import aggregation
from tdnet.models.flow import carried, image_flow
from tdnet_ops import attention_propagate

needs_opencv = pytest.mark.skipif(find_spec("cv2") is None, reason="OpenCV is not installed")
AGGREGATIONS = ("apm", "sta", "add", pytest.param("flow", marks=needs_opencv))
FRAMES = 4


def small_model(**options):
    """A TDNet of four paths whose norms have seen something, and whose phi do not vanish."""
    if options.get("aggregation") not in ("add", "flow"):
        options["pooling_stride"] = 2
    model = build_model("td4-lite0", 5, norm_size=(5, 7), **options)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def frames():
    return torch.randn(6, 3, 33, 49, generator=torch.Generator().manual_seed(5))


def encoded(model, clip):
    """What the definitions are made of: the current frame, its path, and those before it."""
    path = model.num_paths - 1
    past = [
        model.store(model.encode(image[None], index), index)
        for index, image in enumerate(clip[:-1])
    ]
    return model.encode(clip[-1][None], path), model.paths[path % len(model.paths)], past


def labelled(parts, value):
    return parts.head(parts.norm(value))


@torch.inference_mode()
def test_spatio_temporal_attention_is_equation_2(frames):
    model = small_model(aggregation="sta")
    frame, parts, past = encoded(model, frames[:FRAMES])
    value = frame.value
    for hop, other in zip(parts.hops, past, strict=True):
        attended = attention_propagate(frame.query, other.key, other.value)
        value = value + hop.phi(attended.movedim(1, -1)).movedim(-1, 1)
    result = model.opinions(frames[None, :FRAMES])[0]
    torch.testing.assert_close(result, labelled(parts, value), rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_addition_is_the_sum_of_values(frames):
    model = small_model(aggregation="add")
    frame, parts, past = encoded(model, frames[:FRAMES])
    value = frame.value + sum(other.value for other in past)
    result = model.opinions(frames[None, :FRAMES])[0]
    torch.testing.assert_close(result, labelled(parts, value), rtol=1e-3, atol=1e-4)
    assert not any("query" in name or "hops" in name for name in model.state_dict())


@torch.inference_mode()
def test_two_paths_propagate_as_they_attend(frames):
    apm, sta = (
        build_model("td2-lite0", 5, aggregation=aggregation).eval()
        for aggregation in ("apm", "sta")
    )
    sta.load_state_dict(apm.state_dict())
    assert torch.equal(apm(frames[None, :2]), sta(frames[None, :2]))


@pytest.mark.parametrize("surviving", [1, 2, 3, 4])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@torch.inference_mode()
def test_clip_equals_stream(frames, aggregation, surviving):
    model = small_model(aggregation=aggregation)
    model.surviving_paths = surviving
    segmenter = VideoSegmenter(model)
    streamed = [segmenter.logits(frame[None]) for frame in frames]
    for last in (3, 5):
        clip = frames[None, last - 3 : last + 1]
        torch.testing.assert_close(model(clip, last % 4), streamed[last], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@torch.inference_mode()
def test_dropped_frames_say_nothing(frames, aggregation):
    model = small_model(aggregation=aggregation)
    clip = frames[None, :FRAMES].clone()
    for surviving in (4, 3, 2, 1):
        model.surviving_paths = surviving
        before = model(clip)
        for index in range(FRAMES):
            changed = clip.clone()
            changed[:, index] = 0
            is_seen = index >= FRAMES - surviving
            assert torch.equal(model(changed), before) != is_seen, (surviving, index)
    assert torch.equal(*model.opinions(clip))  # of the last path alone


@torch.inference_mode()
def test_a_stream_of_fewer_paths_needs_fewer_frames(frames):
    model = small_model()
    model.surviving_paths = 2
    stream = model.start()
    for frame in frames:
        _, stream = model.label(frame[None], stream)
        stream = model.prepare(stream)
        assert len(stream.window) == 1
        assert stream.memory is not None


@pytest.mark.parametrize("count", [0, 5, True, 2.0])
def test_impossible_survivors(count):
    model = small_model()
    with pytest.raises(ValueError, match="surviving_paths: expected an integer from 1 to 4, got"):
        model.surviving_paths = count
    assert model.surviving_paths == 4


@pytest.mark.parametrize("name", ["td4-lite0", "td2-psp50"])
@torch.inference_mode()
def test_shared_paths_are_one(frames, name, tmp_path):
    shared, independent = (
        build_model(name, 5, norm_size=(5, 7), shared=shared).eval() for shared in (True, False)
    )
    paths = independent.num_paths
    own, all_of_them = (sum(p.numel() for p in m.parameters()) for m in (shared, independent))
    assert own * paths == all_of_them
    clip = frames[None, :paths]
    results = [shared(clip, path) for path in range(paths)]
    assert all(torch.equal(result, results[0]) for result in results)
    save_checkpoint(shared, tmp_path / "shared.safetensors")
    assert torch.equal(load_checkpoint(tmp_path / "shared.safetensors")(clip), results[0])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("shared", [False, True])
def test_gradients_reach_all_layers(frames, aggregation, shared):
    """A step of training changes the loss through every path and layer that the frames use."""
    model = small_model(aggregation=aggregation, shared=shared).train()
    model(frames[None, :FRAMES].expand(2, -1, -1, -1, -1)).square().mean().backward()
    for name, parameter in model.paths[-1].named_parameters():
        if not name.startswith("encoding.key") or shared:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    assert model.paths[0].features.backbone.stem.conv.weight.grad.any()


@pytest.mark.parametrize("stride", [1, 2, 8, 32])
@torch.inference_mode()
def test_strides(frames, stride):
    model = build_model("td2-lite0", 5, pooling_stride=stride).eval()
    segmenter = VideoSegmenter(model)
    streamed = [segmenter.logits(frame[None]) for frame in frames[:2]]
    torch.testing.assert_close(model(frames[None, :2]), streamed[-1], rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_values_are_carried_by_the_flow_from_the_current_image(frames, monkeypatch):
    """Of a window of one frame everything moved by a stride: the value is found a pixel off."""
    model = build_model("td2-lite0", 5, norm_size=(5, 7), aggregation="flow").eval()
    monkeypatch.setattr(
        aggregation, "image_flow", lambda image, past: torch.full_like(image[:, :2], 8.0)
    )
    past, current = (model.encode(image[None], index) for index, image in enumerate(frames[:2]))
    moved = nn.functional.pad(past.value[:, :, 1:, 1:], (0, 1, 0, 1))
    result = model.opinions(frames[None, :2])[0]
    expected = labelled(model.paths[1], current.value + moved)
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-4)


@needs_opencv
def test_flow_finds_a_shift():
    """A texture that moved by 8 pixels to the right and 4 down is found where it was."""
    noise = torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    texture = nn.functional.interpolate(noise, (96, 128), mode="bicubic")
    past, image = texture[..., 8:89, 16:121], texture[..., 4:85, 8:113]
    flow = image_flow(image, past)
    assert flow.shape == (2, 2, 81, 105)
    inside = flow[..., 16:-16, 16:-16].flatten(2).median(2).values
    expected = torch.tensor([[-8.0, -4.0]]).expand(2, 2)
    torch.testing.assert_close(inside, expected, atol=0.3, rtol=0)
    flow = torch.tensor([-8.0, -4.0]).view(1, 2, 1, 1).expand(2, 2, 81, 105)
    result = carried(past[..., ::4, ::4], flow)
    torch.testing.assert_close(result[..., 1:, 2:], image[..., 4::4, 8::4], atol=1e-4, rtol=1e-4)
    assert not result[..., 0, :].any()


def test_without_opencv_flow_says_what_to_install(frames, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match="optical flow needs cv2: pip install"):
        image_flow(frames, frames)
