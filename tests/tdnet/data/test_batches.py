from itertools import chain, islice

import pytest

from tdnet.data.batches import SeededBatches


def test_an_epoch_is_a_permutation_and_epochs_differ():
    samples = [sample for batch in SeededBatches(7, 3, 14, seed=5) for sample in batch]
    epochs = [[index for index, _ in samples[start : start + 7]] for start in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert len({seed for _, seed in samples}) == 42


def test_the_seed_decides():
    assert list(SeededBatches(9, 4, 5, seed=1)) == list(SeededBatches(9, 4, 5, seed=1))
    assert list(SeededBatches(9, 4, 5, seed=1)) != list(SeededBatches(9, 4, 5, seed=2))


def test_batches_may_be_gone_through_again_and_halfway():
    batches = SeededBatches(5, 2, 9)
    halfway = iter(batches)
    first = [next(halfway) for _ in range(4)]
    assert list(batches) == list(batches)
    assert [*first, *halfway] == list(batches)


@pytest.mark.parametrize("first_step", [0, 1, 4, 9])
def test_a_resumed_run_sees_what_the_whole_run_sees(first_step):
    whole = list(SeededBatches(5, 4, 9, seed=3))
    resumed = SeededBatches(5, 4, 9, seed=3, first_step=first_step)
    assert list(resumed) == whole[first_step:]
    assert len(resumed) == 9 - first_step


def test_a_longer_run_begins_as_a_shorter():
    longer = SeededBatches(5, 4, 90)
    assert list(islice(longer, 9)) == list(SeededBatches(5, 4, 9))


@pytest.mark.parametrize("world_size", [2, 3])
def test_shares_of_the_ranks_are_the_batch(world_size):
    whole = list(SeededBatches(7, 6, 8, seed=2))
    ranks = [
        SeededBatches(7, 6, 8, 2, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    assert [list(chain(*shares)) for shares in zip(*ranks, strict=True)] == whole


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({"dataset_length": 0}, "dataset_length: expected at least 1, got 0"),
        ({"batch_size": 3}, "batch_size: expected a multiple of 2, got 3"),
        ({"batch_size": 0}, "batch_size: expected a multiple of 2, got 0"),
        ({"num_steps": 1, "first_step": 2}, "first_step: expected 0 to num_steps, 1, got 2"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"rank": 2}, "rank: expected 0 to 1, got 2"),
        ({"world_size": 0}, "world_size: expected at least 1, got 0"),
    ],
)
def test_bad_numbers_are_named(bad, expected):
    good = {"dataset_length": 5, "batch_size": 4, "num_steps": 9, "world_size": 2}
    with pytest.raises(ValueError, match=expected):
        SeededBatches(**(good | bad))
