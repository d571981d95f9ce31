"""Seconds to draw 60,000 digits; and batches a second on MNIST against a DataLoader of two workers.

    python tests/bench_data.py [--data-dir data] [--device cpu]
    python tests/bench_data.py --likeness      how near the drawn digits are to MNIST's; 15 minutes

Both give float32 batches of 100 in [0, 1], shuffled, on the device; each is timed five times in
turn, and the median counts. Exit status 1 when ours is not 20 times as fast, or when drawing takes
all cores together 30 seconds or more.
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
import metrics

GOAL = 20
GOAL_DRAWN = 30


def rate(stream, count, device):
    """Batches a second of the next `count` of `stream`, without the first, which starts workers."""
    next(stream)
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for x in itertools.islice(stream, count):
        x.sum()  # touched on the device, as a model would
    if device.type == "cuda":
        torch.cuda.synchronize()
    return count / (time.perf_counter() - start)


def likeness(data_dir, device):
    """What a net taught on drawn digits reads of MNIST's test images; how both sets spread."""
    digits, labels = data.load("digits", data_dir)
    mnist, mnist_labels = data.load("mnist", data_dir)
    net = metrics.train_classifier(digits, labels, epochs=1, device=device)
    right = metrics.test_accuracy(net, *data.load("mnist", data_dir, "test"))
    print(f"MNIST's test images read right: {right:.2%}, goal 90 %")
    ratios = metrics.rdd(digits, mnist, labels, mnist_labels)["per_class"].values()
    print("rdd per digit, goal 0.8 to 1.25:", " ".join(f"{ratio:.2f}" for ratio in ratios))
    ours, theirs = (metrics.intrinsic_dimension(x.to(device)) for x in (digits, mnist))
    print(f"intrinsic dimension: {ours:.2f}, MNIST's {theirs:.2f}, goal at most 3 apart")


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--likeness", action="store_true", help="measure the digits against MNIST")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    if args.likeness:
        return likeness(args.data_dir, device)

    wall, cores = time.perf_counter(), time.process_time()
    data.draw("digits", 60_000, 0, 28)
    wall, cores = time.perf_counter() - wall, time.process_time() - cores
    print(f"60,000 digits: {wall:.1f} s, {cores:.1f} s of all cores, goal {GOAL_DRAWN}", flush=True)

    images, _ = data.load("mnist", args.data_dir)
    mnist = datasets.MNIST(args.data_dir, transform=transforms.ToTensor())
    loader = torch.utils.data.DataLoader(mnist, 100, shuffle=True, num_workers=2, drop_last=True)
    ours, theirs = [], []
    for seed in range(5):
        ours.append(rate(data.batches(images, 100, device, seed), 5000, device))
        theirs.append(rate((x.to(device) for x, _ in loader), 200, device))
    ratio = statistics.median(ours) / statistics.median(theirs)
    for name, rates in (("data.batches", ours), ("DataLoader, two workers", theirs)):
        spread = f"({min(rates):.0f} to {max(rates):.0f})"
        print(f"{name:24} {statistics.median(rates):8.0f} batches/s  {spread}")
    threads = torch.get_num_threads()
    print(f"ratio {ratio:.0f}, goal {GOAL}, torch {torch.__version__}, {threads} threads, {device}")
    return int(ratio < GOAL or cores >= GOAL_DRAWN)


if __name__ == "__main__":
    sys.exit(main())
