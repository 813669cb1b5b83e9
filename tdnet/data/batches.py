"""Which samples a training step sees: a function of the seed and the step, and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

Sample = tuple[int, int]
"""Index of a sample in a data set, and the seed of all that is random about it."""


class SeededBatches(Sampler[list[Sample]]):
    """Batches of (index, seed) for the `batch_sampler` of a DataLoader over a `WindowDataset`.

    The data set is gone through in one random order after the other; a batch may hold the end of
    one and the beginning of the next. Steps have numbers: a run that starts at step k sees what a
    run from step 0 on sees from there. A batch is shared by the ranks: their shares, one after the
    other, are the batch that a single process would see.
    """

    def __init__(
        self,
        dataset_length: int,
        batch_size: int,
        num_steps: int,
        seed: int = 0,
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        """Take what decides the batches.

        Args:
            dataset_length: samples of the data set, 1 or more.
            batch_size: samples a step, of all ranks together: a multiple of world_size.
            num_steps: where to stop: the steps are first_step to num_steps - 1.
            seed: of the orders and of the samples, 0 or more.
            first_step: where to start, 0 to num_steps.
            rank: of this process, 0 to world_size - 1.
            world_size: number of processes.

        Raises:
            ValueError: a number is out of its range; the text names it.
        """
        for name, value, least in (
            ("dataset_length", dataset_length, 1),
            ("seed", seed, 0),
            ("world_size", world_size, 1),
        ):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: expected 0 to {world_size - 1}, got {rank}")
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(f"batch_size: expected a multiple of {world_size}, got {batch_size}")
        if not 0 <= first_step <= num_steps:
            raise ValueError(f"first_step: expected 0 to num_steps, {num_steps}, got {first_step}")
        self._dataset_length = dataset_length
        self._batch_size = batch_size
        self._steps = range(first_step, num_steps)
        self._seed = seed
        share = batch_size // world_size
        self._share = range(rank * share, (rank + 1) * share)
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[Sample]]:
        for step in self._steps:
            yield [self._sample(step * self._batch_size + place) for place in self._share]

    def _sample(self, number: int) -> Sample:
        """The sample of this number, counted over all batches since step 0."""
        epoch, place = divmod(number, self._dataset_length)
        if epoch != self._epoch:
            random = np.random.default_rng((self._seed, 0, epoch))
            self._epoch, self._order = epoch, random.permutation(self._dataset_length)
        (seed,) = np.random.SeedSequence((self._seed, 1, number)).generate_state(1, np.uint64)
        return int(self._order[place]), int(seed >> np.uint64(1))  # torch's seeds are signed
