"""Training speed of every script next to the loop as it is usually written.

    python tests/bench_train.py --dataset mnist --data-dir DIR [--device cuda] [PART ...]

usual: images through torchvision's transforms and a DataLoader with two workers, float32,
contiguous tensors, plain Adam, and a printed `.item()` after every update. Each loop is the script
itself in a process of its own, and both take turns. Columns: ms an update (ours, median), images a
second, times as fast as the usual loop (least to most of the rounds), and on CUDA with --no-graph
and with --compile. `--json FILE` writes them for tests/figures.py.
"""

import argparse
import contextlib
import importlib
import io
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PARTS = {  # name: script and flags
    "GRAN1": "gran.py --steps 1",
    "GRAN3": "gran.py --steps 3",
    "GRAN5": "gran.py --steps 5",
    "DRAW": "draw_gan.py",
    "DRAW-GAN": "draw_gan.py --objective draw-gan --warm-up 1",
    "DCRW": "dcrw.py",
    "DE-GAN": "de_gan.py --vae-iters 1",
    "DCGAN": "dcgan.py",
    "WGAN": "dcgan.py --objective wgan",
    "VAE": "vae.py",
}


def make_usual():
    """Replace what the scripts do for speed by what most public loops do."""
    import torch
    from torch.utils.data import DataLoader, Dataset
    from torchvision.transforms.functional import to_pil_image, to_tensor

    import data

    class Pictures(Dataset):
        def __init__(self, images, labels):
            self.images, self.labels = images, labels

        def __len__(self):
            return len(self.images)

        def __getitem__(self, i):
            x = to_tensor(to_pil_image(self.images[i]))
            return x if self.labels is None else (x, self.labels[i])

    def batches(images, batch_size, device, seed, start=0, labels=None):
        loader = DataLoader(Pictures(images, labels), batch_size, shuffle=True, num_workers=2,
                            drop_last=True)
        for _ in itertools.count():
            for batch in loader:
                batch = batch if labels is not None else [batch]
                parts = tuple(part.to(device) for part in batch)
                yield parts if labels is not None else parts[0]

    def captured(update, served, graph):
        sums = 0
        for batch in served:
            losses = update(*(batch if isinstance(batch, tuple) else (batch,)))
            print(*(loss.item() for loss in losses), file=sys.stderr)
            sums = losses + sums
            yield sums

    to, adam = torch.nn.Module.to, torch.optim.Adam
    torch.nn.Module.to = lambda net, *a, memory_format=None, **k: to(net, *a, **k)
    torch.optim.Adam = lambda *a, fused=None, capturable=None, **k: adam(*a, **k)
    data.batches, data.captured = batches, captured


def timed(argv):
    """In a process of its own: time the script's updates; prints seconds of one, and batch size."""
    usual, updates, script, *flags = argv
    import torch

    import data

    if usual == "usual":
        make_usual()
    updates, marks, run = int(updates), [], data.captured
    warm = 5

    def marked(*args):
        for sums in run(*args):
            if "cuda" in flags:
                torch.cuda.synchronize()
            marks.append(time.perf_counter())
            yield sums

    data.captured = marked
    module, batch = importlib.import_module(script.removesuffix(".py")), []
    train_set = data.training_set

    def training_set(args, batch_size):
        found = train_set(args, batch_size)
        batch.append(args.batch_size)
        return found

    data.training_set = training_set
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), \
            contextlib.redirect_stderr(io.StringIO()):
        module.main([*flags, "--iters", str(updates + warm), "--out", folder + "/run",
                     "--log-every", "100000", "--sample-every", "100000"])
    times = [b - a for a, b in itertools.pairwise(marks[-updates - 1:-1])]
    print(json.dumps([statistics.median(times), batch[0]]))


def measure(kind, updates, command):
    argv = [sys.executable, __file__, "--timed", kind, str(updates), *command]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    if sys.argv[1:2] == ["--timed"]:
        return timed(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("part", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    rows = []
    for part in args.part:
        script, *flags = PARTS[part].split()
        command = [script, *flags, "--dataset", args.dataset, "--data-dir", args.data_dir,
                   "--device", args.device]
        ours, usual = [], []
        for _ in range(args.rounds):
            ours.append(measure("ours", args.updates, command))
            usual.append(measure("usual", args.updates, [*command, "--no-amp", "--no-graph"]))
        batch, ms = ours[0][1], 1000 * statistics.median(time for time, _ in ours)
        ratios = sorted(theirs / own for (own, _), (theirs, _) in zip(ours, usual))
        row = {"part": part, "batch": batch, "ms": ms, "images_per_s": 1000 * batch / ms,
               "ratios": ratios}
        if args.device != "cpu":
            for name, flag in (("plain", "no-graph"), ("compiled", "compile"), ("bf16", "amp")):
                row[name] = 1000 * measure("ours", args.updates, [*command, f"--{flag}"])[0]
        rows.append(row)
        rest = "  ".join(f"{name} {row[name]:.2f} ms" for name in ("plain", "compiled", "bf16")
                         if name in row)
        print(f"{part:9} batch {batch:4}  {ms:8.2f} ms  {row['images_per_s']:8.0f} images/s  "
              f"{ratios[0]:.2f} to {ratios[-1]:.2f} times the usual loop  {rest}", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
