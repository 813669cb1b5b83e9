"""Order of threads and blocks, shared memory before a block, limits of a launch, counts."""

import numpy as np
import pytest
from examples import product

BLOCKS, THREADS = 12, 96


def order(examples, seed, collectives=False):
    """Numbers of the threads, 1000 * block + thread, as they ran."""
    examples.set(seed)
    following, out = np.zeros(1, np.int32), np.full(BLOCKS * THREADS, -1, np.int32)
    examples.order(following, out, collectives)
    everyone = (1000 * np.arange(BLOCKS)[:, None] + np.arange(THREADS)).reshape(-1)
    np.testing.assert_array_equal(np.sort(out), everyone)
    return out


def test_seed_0_runs_in_order(examples):
    assert (np.diff(order(examples, 0)) > 0).all()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_other_seeds_shuffle_and_can_be_repeated(examples, seed):
    once = order(examples, seed)
    np.testing.assert_array_equal(once, order(examples, seed))
    blocks, threads = np.divmod(once.reshape(BLOCKS, THREADS), 1000)
    assert (blocks == blocks[:, :1]).all(), "blocks run one after another"
    assert (np.diff(blocks[:, 0]) < 0).any()
    assert (np.diff(threads % 32) < 0).any()
    assert not np.array_equal(once, order(examples, seed + 2))


def test_odd_seeds_interleave_warps(examples):
    """After a collective threads of several warps take turns; with even seeds a warp goes on."""

    def changes(seed):
        warps = order(examples, seed, collectives=True) % 1000 // 32
        return int((np.diff(warps) != 0).sum())

    assert changes(2) < changes(1)


def test_shared_memory_is_nan_in_every_block(examples):
    out = np.zeros((3, 2, 32), np.float32)
    examples.find_shared(out)
    assert np.isnan(out).all()


@pytest.mark.parametrize(
    ("grid_x", "grid_y", "block", "shared", "names"),
    [
        (0, 1, 32, 0, "an empty grid"),
        (1, 65536, 32, 0, "blocks in the grid"),
        (1, 1, 0, 0, "threads in a block"),
        (1, 1, 1025, 0, "threads in a block"),
        (1, 1, 32, (227 << 10) + 1, "dynamic shared memory"),
    ],
)
def test_a_launch_beyond_the_limits_is_refused(examples, grid_x, grid_y, block, shared, names):
    with pytest.raises(RuntimeError, match=rf"invalid launch: {names} \[kernel\(float .*, Bug\)\]"):
        examples.launch(grid_x, grid_y, block, shared)


def test_shared_memory_of_smaller_devices(examples):
    examples.set(most_shared=10 << 10)
    with pytest.raises(RuntimeError, match="invalid launch: dynamic shared memory"):
        product(examples)
    examples.set()
    assert product(examples) == "right"


def test_counts(examples):
    examples.set()
    with examples.counting() as statistics:
        assert product(examples) == "right"
    blocks, warps, steps = 2 * 2, 4, 4
    assert statistics.launches == 1
    assert statistics.blocks == blocks
    # Two barriers a step and one before the row sums.
    assert statistics.barriers == blocks * (2 * steps + 1)
    # Two halves of a step: 16 rows by 32 columns take four products and three loads.
    assert statistics.matrix_products == blocks * warps * steps * 2 * 4
    assert statistics.matrix_loads == blocks * warps * steps * 2 * 3
    assert statistics.collectives == statistics.matrix_products + statistics.matrix_loads
    # 256 + 128 chunks of 16 bytes a step.
    assert statistics.copies == blocks * steps * 384
    assert statistics.bank_conflicts == 0
