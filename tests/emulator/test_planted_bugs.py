"""Every class of mistake is found: by wrong numbers, a named error or the report of a sanitizer.

The kernels are those of kernels/, told by a number which mistake to make.
"""

import re

import emulator
import examples as runner
import pytest

SCHEDULES = [(seed, copies) for seed in range(4) for copies in emulator.COPIES]
# Of barriers and copies: no error, but numbers of another thread are missing or already gone.
RACES = [
    "NoBarrierAfterWait",
    "NoBarrierAfterUse",
    "SumsNotCleared",
    "NoSyncWarp",
    "NoBarrier",
]


@pytest.mark.parametrize(("seed", "copies"), SCHEDULES)
def test_what_is_right_passes(examples, seed, copies):
    examples.set(seed, copies)
    assert runner.product(examples) == "right"
    assert runner.product(examples, half=False) == "right"
    assert runner.misuse(examples) == "right"


@pytest.mark.parametrize(("seed", "copies"), SCHEDULES)
@pytest.mark.parametrize("bug", RACES)
def test_races_and_unset_memory_give_wrong_numbers(examples, bug, seed, copies):
    examples.set(seed, copies)
    assert runner.run(examples, bug) == "wrong"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bug", ["NoWait", "WaitForOlder"])
def test_missing_waits_show_unless_copies_land_at_once(examples, bug, seed):
    for copies, found in (("lazy", "wrong"), ("random", "wrong"), ("eager", "right")):
        examples.set(seed, copies)
        assert runner.run(examples, bug) == found


def line_of(file, text):
    lines = (emulator.FOLDER / "kernels" / file).read_text().splitlines()
    found = [number for number, line in enumerate(lines, 1) if text in line]
    assert len(found) == 1, (text, found)
    return rf"kernels/{file}:{found[0]}: "


PLACES = {
    "LoadsOddChunk": ("product.cu", "copy_async_16(", r"cp.async: global memory not aligned to 16"),
    "TwoBarriers": ("misuse.cu", "", r"__syncthreads while other threads are in __syncthreads at "),
    "BarrierInBranch": ("misuse.cu", "", r"__syncthreads while other threads are in __syncthreads"),
    "ReturnBeforeBarrier": (
        "misuse.cu",
        "",
        r"__syncthreads: 1 threads of the block have returned",
    ),
    "TwoCollectives": (
        "misuse.cu",
        "kNotInMask ?",
        r"__syncwarp \(mask ffffffff\) while other lanes of the warp are in __ballot_sync",
    ),
    "NotInMask": (
        "misuse.cu",
        "kNotInMask ?",
        r"__syncwarp: the calling lane 0 is not in the mask",
    ),
    "LaneReturned": (
        "misuse.cu",
        "kNotInMask ?",
        r"__syncwarp: lanes 00000008 of the mask ffffffff",
    ),
    "MatrixOutside": ("misuse.cu", "kMatrixOutside)", r"ldmatrix: outside of shared memory"),
    "MatrixUnaligned": ("misuse.cu", "kMatrixUnaligned)", r"ldmatrix: shared memory not aligned"),
    "StoreOutside": ("misuse.cu", "", r"st.shared.v4: (outside of|shared memory not aligned)"),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bug", PLACES)
def test_errors_name_place_block_and_thread(examples, bug, seed):
    file, text, message = PLACES[bug]
    place = line_of(file, text) if text else rf"kernels/{file}:\d+: "
    parameters = r"\(float const\*, .*Bug\)" if file == "misuse.cu" else r"\(.*Product<__half>\)"
    where = rf"\[block \(\d, \d, 0\), thread \(\d+, 0, 0\), kernel{parameters}\]$"
    examples.set(seed)
    found = runner.run(examples, bug)
    assert re.search(rf"^error: \S*{place}{message}.*{where}", found), found
    assert runner.misuse(examples) == "right", "the next launch starts afresh"


@pytest.mark.parametrize("seed", range(4))
def test_deadlock_names_who_waits_where(examples, seed):
    examples.set(seed)
    found = runner.run(examples, "WarpInBranch")
    assert found.startswith("error: deadlock, no thread can go on: ")
    for waits in ("(0, 0, 0) waits in __syncthreads", "(16, 0, 0) waits in __syncwarp"):
        assert re.search(rf"thread {re.escape(waits)} at \S*misuse\.cu:\d+", found), found


@pytest.mark.parametrize("seed", range(4))
def test_copies_must_be_waited_for(examples, seed):
    examples.set(seed, "lazy")
    found = runner.run(examples, "CopyNeverWaited")
    assert "the thread returned before 1 asynchronous copies of it had been waited for" in found
    examples.set(seed, "eager")
    assert runner.run(examples, "CopyNeverWaited") == "right"


def test_bank_conflicts_show_in_the_counts_alone(examples):
    examples.set()
    with examples.counting() as statistics:
        assert runner.run(examples, "NoSwizzle") == "right"
    assert statistics.bank_conflicts > 1000


def test_dropped_barriers_and_waits(examples):
    """The same bugs without a change of the source: the place does nothing."""
    source = (emulator.FOLDER / "kernels" / "product.cu").read_text().splitlines()
    places = {
        text: next(number for number, line in enumerate(source, 1) if text in line)
        for text in ("!= kNoBarrierAfterWait", "!= kNoBarrierAfterUse", "copy_async_wait<1>")
    }
    for line in places.values():
        examples.set(1, dropped=("kernels/product.cu", line))
        assert runner.product(examples) == "wrong"
        examples.set(1, dropped=("kernels/other.cu", line))
        assert runner.product(examples) == "right"
    examples.set()
    assert runner.product(examples) == "right"


# --- sanitizers -----------------------------------------------------------------------------------


def sanitized(kind, bug, seed=1, copies="random"):
    emulator.build("examples", kind)
    program = emulator.FOLDER / "examples.py"
    return emulator.run_python(program, kind, bug, seed, copies, **emulator.environment(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["address", "thread", "ucontext"])
@pytest.mark.parametrize(("seed", "copies"), [(0, "lazy"), (1, "random")])
def test_nothing_is_found_where_nothing_is(kind, seed, copies):
    result = sanitized(kind, "None", seed, copies)
    assert result.stdout == "right\nright\n", result.stdout + result.stderr[-4000:]
    assert "anitizer" not in result.stderr, result.stderr[-4000:]
    assert result.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bug", "report", "file"),
    [
        ("LoadBeyondEnd", "heap-buffer-overflow", "product.cu"),
        ("StoreBeyondEnd", "heap-buffer-overflow", "product.cu"),
        ("UnalignedVector", "misaligned address", "product.cu"),
    ],
)
def test_address_sanitizer(bug, report, file):
    result = sanitized("address", bug)
    assert result.returncode != 0
    assert report in result.stderr, result.stderr[-4000:]
    assert f"kernels/{file}:" in result.stderr


@pytest.mark.slow
def test_too_little_shared_memory():
    """The copies name it; what writes by a pointer runs into AddressSanitizer's guard."""
    result = sanitized("address", "LittleShared", 0)
    assert re.search("heap-buffer-overflow|outside of shared memory", result.stdout + result.stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bug", "file"),
    [
        ("NoBarrierAfterWait", "product.cu"),
        ("NoBarrierAfterUse", "product.cu"),
        ("NoSyncWarp", "misuse.cu"),
        ("NoBarrier", "misuse.cu"),
        ("NoAtomic", "misuse.cu"),
    ],
)
def test_thread_sanitizer(bug, file):
    result = sanitized("thread", bug, 0, "eager")
    assert result.returncode == 66
    assert "ThreadSanitizer: data race" in result.stderr, result.stderr[-4000:]
    assert f"kernels/{file}:" in result.stderr
