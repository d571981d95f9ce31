"""Training speed of every script next to the loop as it is usually written.

    python tests/bench_train.py --dataset mnist --data-dir DIR [--device cuda] [PART ...]

usual: images through torchvision's transforms and a DataLoader with two workers, float32,
contiguous tensors, plain Adam, and a printed `.item()` after every update. competent: float images
resident and in channels_last, bfloat16 where ours has it, fused Adam, losses read every 50 updates.
Each loop is the script itself, and all take turns in one process a round. Columns: ms an update
(ours, median), images a second, times as fast as the other loops (least to most of the rounds). On
CUDA, without competent: ms with --no-graph, with --amp and with --compile; kernels of an update;
floor, the ms of its arithmetic at the card's measured peak. --json FILE: for tests/figures.py.
"""

import argparse
import contextlib
import functools
import importlib
import io
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
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


KINDS = {  # flags that a way of running adds
    "ours": [], "plain": ["--no-graph"], "bf16": ["--amp"], "compiled": ["--compile"],
    "counted": ["--no-graph"], "competent": ["--no-graph"], "usual": ["--no-amp", "--no-graph"],
}


class Rate(float):
    """A plain learning rate that the scripts' schedules leave as it is: only time is measured."""

    def fill_(self, value):
        pass


def make_competent():
    """Replace the scripts' batches, loop and optimiser by those of a careful plain loop."""
    import torch

    import data

    def batches(images, batch_size, device, seed, start=0, labels=None):
        images = images.to(device).float().div(255).contiguous(memory_format=torch.channels_last)
        labels = None if labels is None else labels.to(device)
        for _ in itertools.count():
            order = torch.randperm(len(images), device=images.device)
            for chosen in order[: len(order) // batch_size * batch_size].split(batch_size):
                yield images[chosen] if labels is None else (images[chosen], labels[chosen])

    def optimiser(net, lr, kind=torch.optim.Adam, **options):
        fused = {"fused": True} if kind is torch.optim.Adam else {}
        return kind(net.parameters(), Rate(lr), **fused, **options)

    data.batches, data.optimiser = batches, optimiser
    data.captured = functools.partial(plainly, every=50)


def plainly(update, served, graph, every):
    """data.captured without a graph: the losses are read and printed at each of so many updates."""
    sums = 0
    for step, batch in enumerate(served):
        losses = update(*(batch if isinstance(batch, tuple) else (batch,)))
        if step % every == 0:
            print(*(loss.item() for loss in losses), file=sys.stderr)
        sums = losses + sums
        yield sums


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

    def optimiser(net, lr, kind=torch.optim.Adam, **options):
        return kind(net.parameters(), Rate(lr), **options)

    to, adam = torch.nn.Module.to, torch.optim.Adam
    torch.nn.Module.to = lambda net, *a, memory_format=None, **k: to(net, *a, **k)
    torch.optim.Adam = lambda *a, fused=None, capturable=None, **k: adam(*a, **k)
    data.batches, data.optimiser = batches, optimiser
    data.captured = functools.partial(plainly, every=1)


def run_script(kind, updates, script, flags):
    """-> {seconds of an update (median), batch size}; "counted": {kernels, flops} of one."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import data

    marks, found, warm, cuda = [], {}, 5, "cuda" in flags
    captured, training_set = data.captured, data.training_set

    def marked(*args):
        for sums in captured(*args):
            if cuda:
                torch.cuda.synchronize()
            marks.append(time.perf_counter())
            yield sums

    def counted(*args):
        updates = captured(*args)
        yield next(updates)
        with FlopCounterMode(display=False) as counter:
            sums = next(updates)
        found["flops"] = counter.get_total_flops()
        yield sums
        if cuda:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
                sums = next(updates)
                torch.cuda.synchronize()
            found["kernels"] = sum("Mem" not in event.name for event in trace.events())
            yield sums
        yield from updates

    def noted(args, batch_size):
        taken = training_set(args, batch_size)
        found["batch"] = args.batch_size
        return taken

    data.captured, data.training_set = counted if kind == "counted" else marked, noted
    updates = 5 if kind == "counted" else updates + warm
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), \
                contextlib.redirect_stderr(io.StringIO()) as said:
            importlib.import_module(script.removesuffix(".py")).main(
                [*flags, *KINDS[kind], "--iters", str(updates), "--out", folder + "/run",
                 "--log-every", "100000", "--sample-every", "100000"])
    except SystemExit as error:
        raise SystemExit(said.getvalue().strip().splitlines()[-1]) from error
    finally:
        data.captured, data.training_set = captured, training_set
    times = [b - a for a, b in itertools.pairwise(marks[warm - 1 : -1])]  # of DE-GAN: the game
    return found | ({"seconds": statistics.median(times[-updates + warm :])} if times else {})


def peak():
    """Floating-point operations a second of a large float32 product, TF32 where it is allowed."""
    import torch

    torch.set_float32_matmul_precision("high")
    a, n = torch.randn(8192, 8192, device="cuda"), 10
    for i in range(n + 3):
        if i == 3:
            torch.cuda.synchronize()
            clock = time.perf_counter()
        a @ a
    torch.cuda.synchronize()
    return n * 2 * len(a) ** 3 / (time.perf_counter() - clock)


def measure(kinds, updates, command):
    """{kind: run_script's}, in a process of its own; last those that replace parts of data."""
    argv = [sys.executable, __file__, "--timed", ",".join(kinds), str(updates), *command]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        raise SystemExit(f"{' '.join(command)}: {reason[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def timed(kinds, updates, script, *flags):
    found = {}
    for kind in kinds.split(","):
        if kind in ("competent", "usual"):
            make_competent() if kind == "competent" else make_usual()
        found[kind] = run_script(kind, int(updates), script, list(flags))
    print(json.dumps(found))


def main():
    if sys.argv[1:2] == ["--timed"]:
        return timed(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("part", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    cuda, rows = args.device.startswith("cuda"), []
    card = peak() if cuda else None

    def command(part):
        script, *flags = PARTS[part].split()
        return [script, *flags, "--dataset", args.dataset, "--data-dir", args.data_dir,
                "--device", args.device]

    def write():  # after each part: a time limit keeps what is there
        if args.json:
            Path(args.json).write_text(json.dumps({"peak": card, "rows": rows}, indent=1) + "\n")

    for part in args.part:
        kinds = ["ours", *(["plain", "bf16"] if cuda else ["competent"]), "usual"]
        rounds = [measure(kinds, args.updates, command(part)) for _ in range(args.rounds)]
        ms = 1000 * statistics.median(found["ours"]["seconds"] for found in rounds)
        ratios, competent = (sorted(found[kind]["seconds"] / found["ours"]["seconds"]
                                    for found in rounds) for kind in ("usual", kinds[-2]))
        batch = rounds[0]["ours"]["batch"]
        row = {"part": part, "batch": batch, "ms": ms, "images_per_s": 1000 * batch / ms,
               "ratios": ratios}
        if cuda:
            row |= {kind: 1000 * rounds[0][kind]["seconds"] for kind in ("plain", "bf16")}
            more = "".join(f"  {name} {row[name]:.4g}" for name in ("plain", "bf16"))
        else:
            row["competent"] = competent
            more = f", {competent[0]:.2f} to {competent[-1]:.2f} a competent one"
        rows.append(row)
        print(f"{part:9} batch {batch:4}  {ms:8.2f} ms  {row['images_per_s']:8.0f} images/s  "
              f"{ratios[0]:.2f} to {ratios[-1]:.2f} times the usual loop{more}", flush=True)
        write()

    def tried(kind, part, updates=args.updates):
        try:
            return measure([kind], updates, command(part))[kind]
        except SystemExit as error:
            return str(error)

    for kind in ("counted", "compiled") if cuda else ():  # last: compiling takes longest
        if kind == "compiled":  # five at once, untimed: they fill the compiler's cache
            with ThreadPoolExecutor(5) as pool:
                list(pool.map(lambda part: tried("compiled", part, 1), args.part))
        for row in rows:
            found = tried(kind, row["part"])
            if isinstance(found, str):
                print(f"{row['part']:9} not {kind}: {found}", flush=True)
                continue
            new = {"compiled": 1000 * found["seconds"]} if kind == "compiled" else {
                "kernels": found["kernels"], "floor": 1000 * found["flops"] / card}
            row |= new
            print(f"{row['part']:9}", *(f"{name} {value:.4g}" for name, value in new.items()))
            write()
    return None


if __name__ == "__main__":
    main()
