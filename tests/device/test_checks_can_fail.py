"""The checks of this folder on the CPU: right calls pass, and each fault they look for is seen."""

import itertools

import device_checks as checks
import pytest
import samples
import torch

import tdnet_ops


@pytest.fixture(autouse=True)
def _samples_on_the_cpu(monkeypatch):
    monkeypatch.setattr(samples, "DEVICE", torch.device("cpu"))


def sample_of(operator, layout="contiguous", dtype=torch.float32):
    return samples.select(["middle"], [layout], [dtype], [operator])[0]


POOL = sample_of("spatial_pool")
ATTEND = sample_of("attention_propagate")


def test_a_race_is_seen():
    number = itertools.count()

    def racing(*arguments):
        out = tdnet_ops.attention_propagate(*arguments)
        out[0, 0, 0, 0] += 1e-6 if next(number) == 37 else 0
        return out

    with pytest.raises(AssertionError, match=r"call 37 .* 1 of"):
        checks.check_repeats(racing, ATTEND.arguments())


def test_bits_are_compared_not_numbers():
    nan = torch.tensor([float("nan"), 0.0])
    checks.assert_same_bits(nan, nan.clone(), "")
    with pytest.raises(AssertionError):
        checks.assert_same_bits(torch.tensor([0.0]), torch.tensor([-0.0]), "")


def rounding_addresses_down(x, *rest):
    """As a kernel that loads 16 bytes from the vector which a number lies in."""
    whole = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
    start = x.storage_offset() // 4 * 4
    return tdnet_ops.spatial_pool(whole.as_strided(x.size(), x.stride(), start), *rest)


def test_reading_whole_vectors_at_any_address_is_seen():
    checks.check_misaligned(POOL, tdnet_ops.spatial_pool)
    with pytest.raises(AssertionError):
        checks.check_misaligned(POOL, rounding_addresses_down)


@pytest.mark.parametrize("last", [1, 2, 3, 4, 5])
def test_each_argument_is_shifted_alone(last):
    """A call that minds only one argument's alignment is seen too."""
    arguments = ATTEND.arguments()

    def minds_one(*given):
        if given[last].storage_offset() % 4:
            given = list(given)
            given[last] = given[last] * 2
        return tdnet_ops.attention_propagate(*given)

    assert arguments[last] is not None
    with pytest.raises(AssertionError):
        checks.check_misaligned(ATTEND, minds_one)


def test_an_unwritten_number_is_seen():
    def forgetful(*arguments):
        out = tdnet_ops.spatial_pool(*arguments)
        fresh = torch.empty_like(out)
        fresh[..., :-1] = out[..., :-1]
        return fresh

    checks.check_written(POOL, tdnet_ops.spatial_pool)
    with pytest.raises(AssertionError, match="nan"):
        checks.check_written(POOL, forgetful)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("dtype", checks.DTYPES)
def test_one_swapped_operand_is_seen(dtype):
    checks.check_one_hot(tdnet_ops.pooled_affinity, dtype)

    def swapped(q, k, *rest):
        """Two channels of one key, as by a wrong lane of a matrix instruction."""
        k = k.clone()
        k[0, 8, 0, 3], k[0, 9, 0, 3] = k[0, 9, 0, 3].item(), k[0, 8, 0, 3].item()
        return tdnet_ops.pooled_affinity(q, k, *rest)

    with pytest.raises(AssertionError, match=r"6 of 27840 .* query 8, key 3"):
        checks.check_one_hot(swapped, dtype)


def as_tf32(x):
    """Rounded to the 10 bits of TF32's mantissa."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def test_the_wrong_precision_is_seen():
    x, y = (torch.randn(64, 64, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    exact = x.double() @ y.double()
    full = checks.relative_error(x @ y, exact)
    rounded = checks.relative_error(as_tf32(x) @ as_tf32(y), exact)
    half = checks.relative_error((x.bfloat16() @ y.bfloat16()).float(), exact)
    checks.check_precision(full, rounded)
    checks.check_precision(full, full, follows=False)
    for errors, text in (
        ((rounded, rounded), "forbidden"),
        ((full, full), "not used"),
        ((full, half), "more than its rounding"),
        ((full, float("nan")), "more than its rounding"),
    ):
        with pytest.raises(AssertionError, match=text):
            checks.check_precision(*errors)
    assert checks.relative_error(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")


def test_rows_beyond_an_index_are_seen():
    exact = torch.randn(10, 5, dtype=torch.float64)
    checks.check_rows(exact.half(), exact[[0, 9]], [0, 9])
    wrapped = exact.half()
    wrapped[9] = wrapped[2]
    with pytest.raises(AssertionError, match="row 9"):
        checks.check_rows(wrapped, exact[[0, 9]], [0, 9])


def test_a_leak_is_seen():
    kept = []

    def allocated():
        return sum(x.untyped_storage().nbytes() for x in kept)

    checks.check_flat_memory(lambda: torch.ones(8), allocated, 100)
    with pytest.raises(AssertionError, match="100 calls left 3200 bytes"):
        checks.check_flat_memory(lambda: kept.append(torch.ones(8)), allocated, 100)


def test_a_leak_of_the_host_is_seen():
    kept = []
    # So large that the allocator never takes them from what was freed before.
    leaking = lambda: kept.append(torch.ones(9 << 20))  # noqa: E731
    with pytest.raises(AssertionError):
        checks.check_flat_memory(leaking, checks.resident, 4, checks.HOST_SLACK)


def test_too_large_a_peak_is_seen():
    checks.check_peak(None, lambda call: 100, 100)
    with pytest.raises(AssertionError, match="101 bytes"):
        checks.check_peak(None, lambda call: 101, 100)


class Replays:
    """Stands for a graph: what it replays reads the inputs of the capture and writes one result."""

    def __init__(self, sample):
        self.arguments = sample.arguments()
        self.call = getattr(tdnet_ops, sample.operator)
        self.outputs = self.call(*self.arguments)

    def check(self, replay):
        checks.check_replays(replay, self.arguments, self.outputs, self.call)

    def right(self):
        for out, now in zip(
            samples.tensors([self.outputs]),
            samples.tensors([self.call(*self.arguments)]),
            strict=True,
        ):
            out.copy_(now)


@pytest.mark.parametrize("sample", checks.typical(dtypes=[torch.float32]), ids=str)
def test_a_stale_or_empty_replay_is_seen(sample):
    replays = Replays(sample)
    replays.check(replays.right)
    with pytest.raises(AssertionError, match="replay 0"):
        replays.check(lambda: None)
    old = [out.clone() for out in samples.tensors([replays.outputs])]
    done = itertools.count()

    def stale():
        if next(done) == 0:
            replays.right()
            old[:] = [out.clone() for out in samples.tensors([replays.outputs])]
        for out, before in zip(samples.tensors([replays.outputs]), old, strict=True):
            out.copy_(before)

    with pytest.raises(AssertionError, match="replay 1"):
        replays.check(stale)


def test_every_operator_is_checked():
    assert {sample.operator for sample in checks.typical()} == set(samples.NAMES)
