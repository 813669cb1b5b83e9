"""What only a GPU shows: streams, devices, graphs, synchronisation, memory, TF32, 2**31 numbers."""

import device_checks as checks
import pytest
import samples
import torch

import tdnet_ops
from tdnet_ops import reference

pytestmark = pytest.mark.needs_cuda()

HALF = checks.typical(["channels_last"], [torch.float16])
LAYOUTS = checks.typical(dtypes=[torch.float32, torch.float16])


def of(sample, kernels):
    return checks.by_backend(sample.operator, kernels)


# --- dispatch -------------------------------------------------------------------------------------


def test_the_best_backend_that_was_built_is_chosen(gpu):
    usual = tdnet_ops.backends.first_available("spatial_pool", gpu, torch.float32)
    ready = tdnet_ops.build_info()["backends"]
    assert usual == ("cuda" if ready["cuda"] == "ready" else "triton")


@pytest.mark.parametrize("sample", HALF, ids=str)
def test_tensors_of_two_devices_are_refused_by_name(sample, kernels):
    arguments = sample.arguments()
    if len(samples.tensors(arguments)) == 1:
        return  # Nothing to differ from.
    count = iter(range(99))
    mixed = samples.convert(arguments, lambda x: x if next(count) == 0 else x.cpu())
    with pytest.raises((ValueError, RuntimeError), match=r"device"):
        of(sample, kernels)(*mixed)


# --- streams and devices --------------------------------------------------------------------------


@pytest.mark.parametrize("sample", LAYOUTS, ids=str)
def test_order_on_a_side_stream(sample, kernels):
    of(sample, kernels)(*sample.arguments())  # Triton compiles, and may time, in its first call.
    checks.check_stream_order(sample, of(sample, kernels))


def test_the_wrong_stream_would_be_seen(gpu):
    """The test above can fail: a call that strays to the default stream reads what is not there."""
    sample = HALF[0]

    def stray(*arguments):
        with torch.cuda.stream(torch.cuda.default_stream()):
            return tdnet_ops.spatial_pool(*arguments)

    with pytest.raises(AssertionError):
        checks.check_stream_order(sample, stray)


@pytest.mark.needs_cuda(devices=2)
@pytest.mark.parametrize("sample", HALF, ids=str)
def test_a_device_that_is_not_current(sample, kernels):
    with torch.cuda.device(0):
        checks.check_guard(sample, of(sample, kernels), torch.device("cuda", 1))


@pytest.mark.needs_cuda(devices=2)
@pytest.mark.parametrize("sample", HALF, ids=str)
def test_order_on_a_side_stream_of_another_device(sample, kernels, monkeypatch):
    monkeypatch.setattr(samples, "DEVICE", torch.device("cuda", 1))
    call = of(sample, kernels)

    def from_device_0(*arguments):
        with torch.cuda.device(0):
            return call(*arguments)

    from_device_0(*sample.arguments())
    with torch.cuda.device(1):
        checks.check_stream_order(sample, from_device_0)


# --- graphs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", LAYOUTS, ids=str)
def test_replays_follow_their_inputs(sample, kernels):
    checks.check_graph(sample, of(sample, kernels))


def test_a_stale_replay_would_be_seen(gpu):
    sample = HALF[0]
    stale = tdnet_ops.spatial_pool(*sample.arguments())

    def call(*arguments):
        capturing = torch.cuda.is_current_stream_capturing()
        return stale.clone() if capturing else tdnet_ops.spatial_pool(*arguments)

    with pytest.raises(AssertionError, match="replay 0"):
        checks.check_graph(sample, call)


# --- synchronisation and memory -------------------------------------------------------------------


@pytest.mark.parametrize("sample", HALF, ids=str)
def test_no_synchronisation(sample, kernels):
    arguments = sample.arguments()
    with torch.no_grad():
        checks.check_no_synchronisation(lambda: of(sample, kernels)(*arguments))


@pytest.mark.parametrize("wait", [torch.cuda.synchronize, lambda: torch.ones(1).cuda().item()])
def test_a_synchronisation_would_be_seen(gpu, wait):
    with pytest.raises((AssertionError, RuntimeError)):
        checks.check_no_synchronisation(wait)


@pytest.mark.parametrize("sample", HALF, ids=str)
def test_ten_thousand_calls_leave_nothing(sample, kernels):
    arguments = sample.arguments()
    call = of(sample, kernels)

    def once():
        call(*arguments)

    once()
    before = checks.resident()
    checks.check_flat_memory(once, checks.allocated_on_device)
    assert checks.resident() - before <= checks.HOST_SLACK


def test_refused_calls_leave_nothing(kernels):
    """An error on the way out must not keep tensors."""
    q, k = (torch.randn(1, c, 64, 64, device="cuda") for c in (64, 63))

    def refused():
        with pytest.raises((ValueError, RuntimeError)):
            tdnet_ops.attention_propagate(q, k, k, backend=kernels)

    checks.check_flat_memory(refused, checks.allocated_on_device, 200)


def flagship(dtype, requires_grad=False, keys=(32, 64)):
    """1024 x 2048 at stride 8: 32,768 queries, 2,048 keys, 64 value channels."""
    maps = (64, (128, 256)), (64, keys), (64, keys)
    return [
        torch.randn(1, channels, *size, device="cuda", dtype=dtype)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_(requires_grad)
        for channels, size in maps
    ]


@pytest.mark.parametrize("dtype", checks.DTYPES)
def test_the_affinity_is_never_stored(dtype, kernels):
    q, k, v = flagship(dtype)
    affinity = q[0, 0].numel() * k[0, 0].numel() * q.element_size()
    result = q[0, 0].numel() * v.shape[1] * q.element_size()
    most = result + (32 << 20)  # keys, values, and sums of parts of the keys
    assert most < affinity / 2
    checks.check_peak(
        lambda: tdnet_ops.attention_propagate(q, k, v, backend=kernels), checks.peak_on_device, most
    )


def test_the_affinity_is_never_stored_by_the_backward_pass(kernels):
    """Chunks of 17 MB, half a dozen at once, beside 268 MB of one affinity; torch keeps two."""
    q, k, v = flagship(torch.float32, requires_grad=True)
    affinity = 4 * q[0, 0].numel() * k[0, 0].numel()

    def call():
        tdnet_ops.attention_propagate(q, k, v, backend=kernels).sum().backward()

    checks.check_peak(call, checks.peak_on_device, affinity * 3 // 4)


@pytest.mark.parametrize("dtype", checks.DTYPES)
def test_a_stored_affinity_would_be_seen(dtype, gpu):
    q, k, v = flagship(dtype)
    most = (q.numel() + (16 << 20)) * q.element_size()
    with pytest.raises(AssertionError, match="bytes taken"):
        checks.check_peak(
            lambda: reference.attention_propagate(q, k, v), checks.peak_on_device, most
        )


# --- TF32 -----------------------------------------------------------------------------------------

PRODUCTS = [
    sample
    for sample in checks.typical(["channels_last"], [torch.float32])
    if sample.operator not in ("spatial_pool", "upsample_argmax")
]


def set_tf32(matmul, convolution):
    torch.backends.cuda.matmul.fp32_precision = "tf32" if matmul else "ieee"
    torch.backends.cudnn.allow_tf32 = convolution


def result_and_gradients(call, arguments):
    """Everything that a call computes, forward first."""
    leaves = samples.convert(arguments, lambda x: x.detach().requires_grad_())
    outputs = samples.tensors([call(*leaves)])
    inputs = [x for x in samples.tensors(leaves) if x.numel()]
    found = torch.autograd.grad(sum(x.cos().sum() for x in outputs), inputs, allow_unused=True)
    return outputs, [x for x in found if x is not None]


def errors(sample, kernels):
    """The largest relative error of the results, and that of the gradients."""
    define = getattr(reference, sample.operator)
    exact = result_and_gradients(define, samples.widen(samples.on_cpu(sample.arguments())))
    found = result_and_gradients(of(sample, kernels), sample.arguments())
    return [
        max(checks.relative_error(x.cpu(), y) for x, y in zip(got, right, strict=True))
        for got, right in zip(found, exact, strict=True)
    ]


@pytest.mark.parametrize("sample", PRODUCTS, ids=str)
def test_tf32_only_where_the_user_allows_it(sample, kernels):
    """By the flag of matrix products. cuDNN's own stands at torch's default, TF32, both times."""
    set_tf32(matmul=False, convolution=True)
    full = errors(sample, kernels)
    set_tf32(matmul=True, convolution=True)
    rounded = errors(sample, kernels)
    checks.check_precision(full[0], rounded[0])
    # A backward pass may refuse the offer, but never take what was not offered.
    checks.check_precision(full[1], rounded[1], follows=False)


# --- more than 2**31 numbers ----------------------------------------------------------------------

SIDE = 46_344  # squared it is above 2**31


@pytest.mark.needs_cuda(memory_gb=14)
def test_logits_beyond_two_to_the_31(kernels):
    q, k = (torch.randn(1, 8, SIDE, 1, device="cuda", dtype=torch.float16) for _ in range(2))
    affinity = tdnet_ops.pooled_affinity(q, k, backend=kernels)
    assert affinity.numel() > 2**31
    rows = [0, SIDE // 2, SIDE - 2, SIDE - 1]
    queries, keys = q[0, :, :, 0].double(), k[0, :, :, 0].double()
    checks.check_rows(affinity[0], queries[:, rows].T @ keys * 8**-0.5, rows)
    # ... and back, from as many logits.
    v = torch.randn(1, 8, SIDE, 1, device="cuda", dtype=torch.float16)
    out = tdnet_ops.softmax_propagate(affinity, v, (SIDE, 1), backend=kernels)
    exact = affinity[0, rows].double().softmax(-1) @ v[0, :, :, 0].double().T
    checks.check_rows(out[0, :, :, 0].T, exact, rows)


@pytest.mark.needs_cuda(memory_gb=8)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_attention_beyond_two_to_the_31(kernels, dtype):
    q, k, v = (torch.randn(1, 64, SIDE, 1, device="cuda", dtype=dtype) for _ in range(3))
    out = tdnet_ops.attention_propagate(q, k, v, scale=1.0, backend=kernels)
    rows = [0, SIDE // 2, SIDE - 2, SIDE - 1]
    queries, keys, values = (x[0, :, :, 0].double() for x in (q, k, v))
    exact = (queries[:, rows].T @ keys).softmax(-1) @ values.T
    checks.check_rows(out[0, :, :, 0].T, exact, rows)


@pytest.mark.needs_cuda(memory_gb=14)
def test_maps_beyond_two_to_the_31(kernels):
    """32 channels of 8,200 x 8,200 pixels; a few pixels at the end of the map tell."""
    x = torch.zeros(1, 32, 8200, 8200, device="cuda", dtype=torch.float16)
    x = x.contiguous(memory_format=torch.channels_last)
    assert x.numel() > 2**31
    x[:, :, -2:, -3:] = torch.randn(1, 32, 2, 3, device="cuda")
    corner = x[:, :, -2:, -3:].double()
    pooled = tdnet_ops.spatial_pool(x, 2, backend=kernels)
    expected = torch.stack([corner[..., :1].amax((2, 3)), corner[..., 1:].amax((2, 3))], -1)
    # The window of the first column also holds zeros left of the corner.
    expected[..., 0].clamp_(min=0)
    torch.testing.assert_close(pooled[:, :, -1, -2:].double(), expected, rtol=0, atol=0)
    weight = torch.randn(8, 32, 1, 1, device="cuda", dtype=torch.float16)
    reduced = tdnet_ops.block_sum_reduce([x], [weight], backend=kernels)
    exact = torch.einsum("oc,bchw->bohw", weight[:, :, 0, 0].double(), corner)
    assert checks.relative_error(reduced[:, :, -2:, -3:], exact) < 1e-2


@pytest.mark.needs_cuda(memory_gb=8)
def test_labels_beyond_two_to_the_31(kernels):
    logits = torch.randn(3, 3, 30, 40, device="cuda")
    size = (26_000, 28_000)
    labels = tdnet_ops.upsample_argmax(logits, size, align_corners=True, backend=kernels)
    assert labels.numel() > 2**31
    # With corners aligned the last pixel is the last logit.
    assert torch.equal(labels[:, -1, -1].long(), logits[:, :, -1, -1].argmax(1))
    assert torch.equal(labels[:, 0, 0].long(), logits[:, :, 0, 0].argmax(1))


# --- streaming ------------------------------------------------------------------------------------


def labels_of(segmenter, frames):
    return [segmenter.step(frame) for frame in frames]


@pytest.mark.needs_cuda(devices=2)
def test_streaming_on_a_device_that_is_not_current(monkeypatch):
    """The labels are there when `step` returns them, however late the device is."""
    from tdnet import VideoSegmenter, build_model, streaming

    model = build_model("td4-psp18", 6).eval().to("cuda:1")
    frames = torch.randint(0, 256, (6, 65, 97, 3), dtype=torch.uint8)
    with torch.cuda.device(1):
        expected = labels_of(VideoSegmenter(model), frames)
    upsample = streaming.upsample_argmax

    def late(logits, *rest, **named):
        with torch.cuda.device(logits.device):
            torch.cuda._sleep(checks.LONG_SLEEP)
        return upsample(logits, *rest, **named)

    monkeypatch.setattr(streaming, "upsample_argmax", late)
    with torch.cuda.device(0):
        found = labels_of(VideoSegmenter(model), frames)
    for got, right in zip(found, expected, strict=True):
        assert (got == right).all()


def test_streaming_waits_for_labels_on_a_side_stream(gpu):
    from tdnet import VideoSegmenter, build_model

    model = build_model("td4-psp18", 6).eval().to(gpu)
    frames = torch.randint(0, 256, (6, 65, 97, 3), dtype=torch.uint8)
    expected = labels_of(VideoSegmenter(model), frames)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    segmenter = VideoSegmenter(model)
    with torch.cuda.stream(stream):
        found = []
        for frame in frames:
            torch.cuda._sleep(checks.LONG_SLEEP)
            found.append(segmenter.step(frame))
    for got, right in zip(found, expected, strict=True):
        assert (got == right).all()
