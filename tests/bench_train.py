"""Training and sampling speed of every script beside the loop as usually written: python tests/bench_train.py [PART ...]

    python tests/bench_train.py --dataset mnist --data-dir DIR          all parts; gran5, dcgan, ... name some of them
    python tests/bench_train.py gran5 --device cuda --lines 20

Both loops are the script itself, run as a user runs it, in turn, and timed by the lines it prints; each in a process of
its own, so that its peak memory is its own. The usual loop is what most ports have: images through torchvision's
transforms and a DataLoader with two workers, float32, contiguous tensors, convolutions, Adam and memory as they come, D's
weights given gradients in G's update too, DRAW's attention as its equations stand (`filterbank`, `read`, `write`), and a
line after every update, for which the device is waited for. `usual` below makes it out of a script by replacing these
things and no other.

Columns: ms an update and images/s of ours (the median over rounds), peak memory in GiB (resident, on CUDA allocated), how
many times as fast as the usual loop (by the medians; then the least and the most of a round), the share of the time that
passes outside of the networks, their losses' backward pass and the optimisers, and the floor: the update's counted
floating-point operations at the machine's matrix rate, as a share of the time taken. Then 10,000 samples, `--help`, and the
time from the command to the first update, in seconds, and the kernels of an update: on CUDA its launches, on a CPU the calls
of operators that compute, about one launch each, from which one may estimate what an update takes where launches are the
limit. Three parts have lines of their own: `first`, how long README's first command takes to its first grid and to its end;
`memory`, GRAN's peak for T = 10, 20 and 40, and what a step more takes; `busy`, GRAN5's speed beside a program that computes.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PARTS = {  # name: (script and its own flags, data set or None for --dataset's, updates a line)
    "gran1": ("gran.py --steps 1", None, 20),
    "gran3": ("gran.py --steps 3", None, 10),
    "gran5": ("gran.py --steps 5", None, 10),
    "draw": ("draw_gan.py", None, 20),
    "draw-gan": ("draw_gan.py --objective draw-gan", None, 20),
    "dcrw": ("dcrw.py", None, 20),
    "dcrw-none": ("dcrw.py --read none", None, 20),
    "dcgan": ("dcgan.py", None, 20),
    "gan": ("dcgan.py --arch dense", None, 50),
    "wgan": ("dcgan.py --objective wgan", None, 10),
    "de_gan": ("de_gan.py --vae-iters 1", None, 20),
    "vae": ("vae.py", None, 100),
    "gran3-cifar10": ("gran.py --steps 3", "cifar10", 2),
    "dcgan-cifar10": ("dcgan.py", "cifar10", 10),
    "de_gan-cifar10": ("de_gan.py --vae-iters 1", "cifar10", 2),
}


# ------------------------------------------------------------------------------- inside the process that is measured


def filterbank(params, N, S):
    """The filters of `draw_gan.filterbank`, DRAW's eqs. 19 to 26 as printed, and `read`, `write` likewise; test_draw_gan.py holds both ways equal."""
    import torch

    g_x, g_y, log_variance, log_delta, log_gamma = params.split(1, 1)
    delta = (S - 1) / max(N - 1, 1) * log_delta.exp()
    i, a = torch.arange(1, N + 1, device=params.device), torch.arange(1, S + 1, device=params.device)
    filters = []
    for g in (g_x, g_y):
        mu = (S + 1) / 2 * (g + 1) + (i - N / 2 - 0.5) * delta
        F = torch.exp(-((a - mu[:, :, None]) ** 2) / (2 * log_variance.exp()[:, :, None]))
        filters.append(F / F.sum(2, keepdim=True).clamp(min=1e-30))  # nought where a filter lies outside of the image
    return *filters, log_gamma.exp()


def read(image, F_x, F_y, gamma):
    return gamma[:, :, None, None] * (F_y[:, None] @ image @ F_x[:, None].mT)


def write(patch, F_x, F_y, gamma):
    return F_y[:, None].mT @ patch @ F_x[:, None] / gamma[:, :, None, None]


def usual(script):
    """Makes the loop of a script, an imported module, the usual one."""
    import torch
    from torchvision import transforms

    import data
    import metrics

    class Pictures(torch.utils.data.Dataset):
        def __init__(self, images, labels):
            self.images, self.labels = images, labels
            self.transform = transforms.Compose([transforms.ToPILImage(), transforms.ToTensor()])

        def __len__(self):
            return len(self.images)

        def __getitem__(self, i):
            x = self.transform(self.images[i])
            return x if self.labels is None else (x, self.labels[i])

    def batches(images, batch_size, device, seed, start=0, labels=None):
        loader = torch.utils.data.DataLoader(Pictures(images, labels), batch_size, shuffle=True, num_workers=2, drop_last=True)
        while True:
            for batch in loader:
                yield batch.to(device) if labels is None else tuple(part.to(device) for part in batch)

    to, adam, contiguous = torch.nn.Module.to, torch.optim.Adam, torch.Tensor.contiguous
    torch.nn.Module.to = lambda net, *places, memory_format=None, **more: to(net, *places, **more)
    torch.Tensor.contiguous = lambda tensor, memory_format=None: contiguous(tensor)
    torch.Tensor.movedim = lambda x, source, to: x if source == 1 else x.reshape(len(x), x.shape[3], *x.shape[1:3])  # rows (K, S, S)
    torch.nn.Module.requires_grad_ = lambda net, requires_grad=True: net
    if script.__name__ != "draw_gan":  # whose guard rests a network through the fused one
        torch.optim.Adam = lambda *params, fused=None, **more: adam(*params, **more)
    script.ToImage, script.FromImage = torch.nn.ConvTranspose2d, torch.nn.Conv2d
    script.filterbank, script.read, script.write = filterbank, read, write
    data.batches = batches
    metrics.keep_freed_memory = lambda: None


def shares(main, argv):
    """Runs a script; -> the share of the time from its second to its last line that is outside of nets and gradients."""
    import torch

    inside, depth, marks = [0.0], [0], []

    def timed(owner, name):
        function = getattr(owner, name)

        def call(*args, **kwargs):
            depth[0] += 1
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                depth[0] -= 1
                inside[0] += 0 if depth[0] else time.perf_counter() - began

        setattr(owner, name, call)

    class Lines(io.StringIO):
        def write(self, text):
            if text.startswith("step"):
                marks.append((time.perf_counter(), inside[0]))
            return len(text)

    timed(torch.nn.Module, "__call__")
    timed(torch.Tensor, "backward")
    timed(torch.optim.Adam, "step")
    timed(torch.optim.RMSprop, "step")
    timed(torch.optim.Optimizer, "zero_grad")
    with contextlib.redirect_stdout(Lines()):
        main(argv)
    (began, before), (ended, after) = marks[1], marks[-1]  # after de_gan.py's first the VAE is saved
    return 1 - (after - before) / (ended - began)


def operations(main, argv):
    """(floating-point operations, kernels) of one update: what three take more than two."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    class Untracked(contextlib.nullcontext):
        """For the counter's record of modules, which breaks on a forward pass without gradients."""

        parents = frozenset({"Global"})

    class Calls(TorchDispatchMode):
        """Counts the operators that compute: neither views nor what only hands memory out."""

        n = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.n += not func.is_view and not func.__name__.startswith(("empty", "detach", "_local_scalar"))
            return func(*args, **kwargs or {})

    cuda = "cuda" in argv[argv.index("--device") + 1]
    found = []
    for iters in ("2", "3"):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            kinds = [torch.profiler.ProfilerActivity.CPU]
            counter = FlopCounterMode(display=False)
            counter.mod_tracker = Untracked()
            with counter, torch.profiler.profile(activities=kinds) if cuda else Calls() as calls:
                main([*argv, "--iters", iters, "--out", folder + "/run"])
        kernels = sum(e.count for e in calls.key_averages() if "LaunchKernel" in e.key) if cuda else calls.n
        found.append((counter.get_total_flops(), kernels))
    return tuple(more - less for less, more in zip(*found))


def inner(mode, script, argv):
    """What a process of its own does: run the script as it is, or so as to find out one thing about it."""
    module = importlib.import_module(script.removesuffix(".py"))
    main = module.main
    if mode == "usual":
        usual(module)
    if mode in ("ours", "usual"):
        main(argv)
        import torch

        if torch.cuda.is_initialized():
            print("allocated", torch.cuda.max_memory_allocated() / 2**30)
    else:
        print(json.dumps({"shares": shares, "operations": operations}[mode](main, argv)))


# ------------------------------------------------------------------------------------------- the process that measures


def timed_lines(mode, script, argv, per_line):
    """Runs a script in a process; -> (s an update between its first and last line, s to its first line, peak GiB)."""
    began = time.perf_counter()
    command = [sys.executable, __file__, "--inner", mode, script, *argv, "--log-every", "1" if mode == "usual" else str(per_line)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    marks, allocated = [], None
    for line in process.stdout:
        step = re.match(r"step +(\d+)/.*img/s", line)
        if step:
            marks.append((time.perf_counter(), int(step[1])))
        if line.startswith("allocated"):
            allocated = float(line.split()[1])
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or len(marks) < 3:
        sys.exit(f"{' '.join(command)} failed:\n{errors}")
    first = next(mark for mark in marks if mark[1] >= per_line)
    last = marks[-1]
    return (last[0] - first[0]) / (last[1] - first[1]), marks[0][0] - began, allocated or usage.ru_maxrss / 2**20


def asked(mode, script, argv):
    """What a process of its own finds out by `shares` or `operations`."""
    out = subprocess.run([sys.executable, __file__, "--inner", mode, script, *argv], capture_output=True, text=True, check=False)
    if out.returncode:
        sys.exit(out.stderr)
    return json.loads(out.stdout.splitlines()[-1])


def matrix_rate(device, amp):
    """The machine's FLOP/s in products of matrices 4096 wide, in the type that training takes there."""
    import torch

    import data

    dtype = torch.bfloat16 if amp and data.has_bf16(device) else torch.float32
    a = torch.randn(4096, 4096, device=device, dtype=dtype)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        seconds.append(time.perf_counter() - began)
    return 2 * 4096**3 / min(seconds), str(dtype).removeprefix("torch.")


def memory(flags, args):
    """Peak GiB of GRAN for T drawing steps; its last pictures take less than T = 10 does."""
    peaks = {}
    for T in (10, 20, 40):
        with tempfile.TemporaryDirectory() as folder:
            argv = [*flags, "--steps", str(T), "--iters", "3", "--out", folder + "/run"]
            peaks[T] = timed_lines("ours", "gran.py", argv, 1)[2]
    a_step = 1024 * (peaks[40] - peaks[10]) / 30
    return "GRAN takes " + ", ".join(f"{peak:.2f} GiB at T = {T}" for T, peak in peaks.items()) + f"; {a_step:.0f} MiB a step"


def first(flags, args):
    """Seconds of python gran.py --steps 5, as a new user runs it, the digits not yet drawn, to its first grid and to its end."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / "gran.py", "--steps", "5", "--device", args.device, "--data-dir", f"{folder}/data"]
        began, grid = time.perf_counter(), None
        with subprocess.Popen([*command, "--out", f"{folder}/run"], stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                if grid is None and any(Path(folder, "run").glob("samples/*.png")):
                    grid = time.perf_counter() - began
                time.sleep(0.1)
        if process.returncode:
            sys.exit("python gran.py --steps 5 failed")
        return f"python gran.py --steps 5 shows a grid after {grid:.0f} s and is done after {time.perf_counter() - began:.0f} s"


def busy(flags, args):
    """GRAN5's images/s: alone, with one core taken by an endless loop, and beside that with the threads that are left."""
    import torch

    endless = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"  # but for the end of this program
    threads, speeds = torch.get_num_threads(), []
    for loops, left in ((0, threads), (1, threads), (1, max(1, threads - 1))):
        os.environ["OMP_NUM_THREADS"] = str(left)  # for the processes begun from here on
        loop = subprocess.Popen([sys.executable, "-c", endless]) if loops else None
        try:
            with tempfile.TemporaryDirectory() as folder:
                argv = [*flags, "--steps", "5", "--batch-size", "100", "--iters", str(10 * (args.lines + 1)), "--out", f"{folder}/run"]
                speeds.append(100 / timed_lines("ours", "gran.py", argv, 10)[0])
        finally:
            if loop:
                loop.kill()
                loop.wait()
            os.environ["OMP_NUM_THREADS"] = str(threads)
    alone, beside, fewer = speeds
    return f"GRAN5 {alone:.0f} img/s alone, {beside:.0f} beside an endless loop, {fewer:.0f} with a thread fewer too"


OWN = {"first": first, "memory": memory, "busy": busy}  # parts that have a line of their own


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", nargs="*", help=", ".join([*PARTS, *OWN]))
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lines", type=int, default=4, help="lines of ours to time, each of the part's updates")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-amp", dest="amp", action="store_false", help="ours in float32 too")
    args = parser.parse_args()
    import torch

    rate, dtype = matrix_rate(args.device, args.amp)
    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads; {dtype} products at {rate / 1e9:.0f} GFLOP/s")
    print(f"{'':15} {'ms':>7} {'img/s':>7} {'GiB':>5} {'usual':>6} {'least, most':>13} {'outside':>8} {'floor':>6} {'samples':>8} "
          f"{'--help':>7} {'start':>6} {'kernels':>8}", flush=True)  # fmt: skip
    for part in args.part or [*PARTS, *OWN]:
        flags, dataset, per_line = PARTS.get(part, ("gran.py", None, 1))
        script, *flags = flags.split()
        flags += ["--dataset", dataset or args.dataset, "--data-dir", args.data_dir, "--device", args.device]
        flags += ["--sample-every", "1000000000", *([] if args.amp else ["--no-amp"])]
        if part in OWN:
            print(f"{part}: {OWN[part](flags, args)}", flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = {"ours": [], "usual": []}
            for turn in range(args.rounds):
                for mode, times in found.items():
                    iters = str(per_line * (args.lines + 1))
                    more = ["--no-amp"] if mode == "usual" else []
                    run = ["--iters", iters, "--out", f"{folder}/{mode}{turn}"]
                    times.append(timed_lines(mode, script, [*flags, *more, *run], per_line))
            ratios = [theirs[0] / ours[0] for ours, theirs in zip(found["ours"], found["usual"])]
            ours, theirs = (statistics.median(row[0] for row in found[mode]) for mode in ("ours", "usual"))
            batch_size = json.loads(Path(folder, "ours0", "args.json").read_text())["batch_size"]
            lines = ["--iters", str(4 * per_line), "--log-every", str(per_line)]
            outside = asked("shares", script, [*flags, *lines, "--out", f"{folder}/shares"])
            flops, kernels = asked("operations", script, flags)

            import metrics

            run = metrics.load_run(f"{folder}/ours0", args.device)
            n = 10_000 if dataset is None else 1000
            began = time.perf_counter()
            run.sample(n)[0, 0, 0, 0].item()
            sampling = (time.perf_counter() - began) * 10_000 / n
        began = time.perf_counter()
        subprocess.run([sys.executable, ROOT / script, "--help"], stdout=subprocess.DEVNULL, check=True)
        start = time.perf_counter() - began
        print(f"{part:15} {1000 * ours:7.1f} {batch_size / ours:7.0f} {found['ours'][0][2]:5.2f} {theirs / ours:6.2f} "
              f"{min(ratios):5.2f} to {max(ratios):5.2f} {outside:8.1%} "
              f"{flops / rate / ours:6.0%} {sampling:8.1f} {start:7.1f} {min(row[1] for row in found['ours']):6.1f} {kernels:8}",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inner"]:
        inner(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        main()
