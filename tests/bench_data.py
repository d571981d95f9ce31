"""Seconds to draw 60,000 digits; and batches a second on MNIST beside a DataLoader with two workers, in turn in one run.

    python tests/bench_data.py [--data-dir data] [--device cpu]

Both give float32 batches of 100 in [0, 1], shuffled, on the device. Each is timed five times over, one after the other,
and the median counts: what else the machine does meets both. Of the drawing the seconds of all cores together count
too, which do not depend on what else the machine does. Exit status 1 when ours is not 20 times as fast, or when drawing
takes the cores 30 seconds or more.
"""

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path

import torch
from torchvision import datasets, transforms

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data

GOAL = 20
GOAL_DRAWN = 30


def rate(stream, count, device):
    """Batches a second of the next `count` of `stream`, the first, which starts workers or an epoch, left out."""
    next(stream)
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for x in itertools.islice(stream, count):
        x.sum()  # touched on the device, as a model would
    if device.type == "cuda":
        torch.cuda.synchronize()
    return count / (time.perf_counter() - start)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    device = torch.device(args.device)

    wall, cores = time.perf_counter(), time.process_time()
    data.draw_digits(60_000, 0)
    wall, cores = time.perf_counter() - wall, time.process_time() - cores
    print(f"60,000 digits drawn in {wall:.1f} s, {cores:.1f} s of all cores together, goal {GOAL_DRAWN}", flush=True)

    images, _ = data.load("mnist", args.data_dir)
    mnist = datasets.MNIST(args.data_dir, transform=transforms.ToTensor())
    loader = torch.utils.data.DataLoader(mnist, batch_size=100, shuffle=True, num_workers=2, drop_last=True)
    ours, theirs = [], []
    for seed in range(5):
        ours.append(rate(data.batches(images, 100, device, seed), 5000, device))
        theirs.append(rate((x.to(device) for x, _ in loader), 200, device))
    ratio = statistics.median(ours) / statistics.median(theirs)
    for name, rates in (("data.batches", ours), ("DataLoader, two workers", theirs)):
        print(f"{name:24} {statistics.median(rates):8.0f} batches/s  ({min(rates):.0f} to {max(rates):.0f})")
    print(f"ratio {ratio:.0f}, goal {GOAL} | torch {torch.__version__}, {torch.get_num_threads()} threads, {device}")
    return int(ratio < GOAL or cores >= GOAL_DRAWN)


if __name__ == "__main__":
    sys.exit(main())
