"""Whether a trainer waits for its data: python benchmarks/loading.py DATA_SET ROOT.

It loads batches as training does, and pretends to train on each for a while.
"""

import argparse
import statistics
import time
from pathlib import Path

from torch.utils.data import DataLoader

from tdnet.data.augment import training_transform
from tdnet.data.batches import SeededBatches
from tdnet.data.catalog import DATA_SETS, labelled_videos
from tdnet.data.window_dataset import WindowDataset

# Workers start and fill their queues; a trainer compiles and warms up meanwhile.
_STEPS_NOT_COUNTED = 3


def size(text: str) -> tuple[int, int]:
    height, width = text.split("x")
    return int(height), int(width)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_set", choices=DATA_SETS)
    parser.add_argument("root", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--length", type=int, default=4, help="frames of a window")
    parser.add_argument("--crop", type=size, default=(769, 769), metavar="HxW")
    parser.add_argument("--motion-share", type=float, default=0.0)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--step-ms", type=float, default=200.0, help="of the trainer, a batch")
    return parser.parse_args()


def waits(batches: DataLoader, step_seconds: float) -> list[float]:
    """Seconds that each step waits for its batch."""
    found = []
    asked = time.perf_counter()
    for _ in batches:
        found.append(time.perf_counter() - asked)
        time.sleep(step_seconds)
        asked = time.perf_counter()
    return found


def main() -> None:
    options = arguments()
    windows = WindowDataset(
        labelled_videos(options.data_set, options.root, options.split),
        options.length,
        training_transform(options.crop, jitter=0.2),
        motion_share=options.motion_share,
    )
    steps = SeededBatches(len(windows), options.batch_size, options.steps + _STEPS_NOT_COUNTED)
    for workers, step_ms in ((0, 0.0), (options.workers, options.step_ms)):
        loader = DataLoader(windows, batch_sampler=steps, num_workers=workers)
        found = [1000 * seconds for seconds in waits(loader, step_ms / 1000)][_STEPS_NOT_COUNTED:]
        print(
            f"{workers} workers, steps of {step_ms:g} ms: a step waits for its batch "
            f"{statistics.median(found):.1f} ms (median), at most {max(found):.1f} ms"
        )


if __name__ == "__main__":
    main()
