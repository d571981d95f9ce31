"""Times the measures and their peers in one run: python tests/bench_metrics.py [PART ...]

Each part runs in a process of its own, ours first, so that its peak memory is ours. The last part
is the whole of `metrics.py eval` on an untrained GRAN5, after training the data set's classifier
if need be. Needs scikit-learn and scikit-dimension. --json FILE: the seconds, for tests/figures.py.
"""

import argparse
import functools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import data
import metrics

ROWS = []


def report(name, ours, peers, rounds=3):
    """Runs ours and {peer: function} in turn and prints the shortest time of each."""
    ours()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    functions = {name: ours, **peers}
    seconds = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for key, function in functions.items():
            began = time.perf_counter()
            function()
            seconds[key] = min(seconds[key], time.perf_counter() - began)
    print(f"{name}: {seconds[name]:.2f} s, peak so far {peak:.2f} GiB")
    for peer in peers:
        ratio = seconds[peer] / seconds[name]
        ROWS.append({"measure": name, "seconds": seconds[name], "peer": peer, "ratio": ratio})
        print(f"    {peer:<48} {seconds[peer]:6.2f} s   {ratio:5.2f} of ours", flush=True)


def frechet():
    from scipy.linalg import sqrtm

    def times(name, n, decay):
        spectrum = torch.logspace(0, decay, 2048, dtype=torch.float64)
        x, y = (torch.randn(n, 2048, dtype=torch.float64) * spectrum for _ in "12")
        (mu1, cov1), (mu2, cov2) = metrics.stats(x), metrics.stats(y)
        theirs = {"scipy.linalg.sqrtm, as pytorch-fid": lambda: sqrtm(cov1.numpy() @ cov2.numpy())}
        report(name, lambda: metrics.frechet_distance(mu1, cov1, mu2, cov2), theirs, rounds=2)

    torch.manual_seed(0)
    times("Frechet, d = 2048", 10_000, -1)
    times("Frechet, d = 2048, nearly singular", 10_000, -4)


def neighbours():
    from skdim.id import MLE
    from sklearn.neighbors import NearestNeighbors

    torch.manual_seed(0)
    x, y = torch.rand(10_000, 784), torch.rand(10_000, 784)
    brute = NearestNeighbors(algorithm="brute", n_jobs=-1).fit(x.numpy())
    for k in (5, 20):
        peers = {
            "the matrix product alone, float32": lambda: y @ x.T,
            "scikit-learn, brute force": functools.partial(brute.kneighbors, y.numpy(), k),
        }
        ours = functools.partial(metrics.nearest, x, k, queries=y)
        report(f"nearest, 10,000 x 10,000, d = 784, k = {k}", ours, peers, rounds=5)
    theirs = {"scikit-dimension": lambda: MLE().fit(x.numpy(), n_neighbors=20, n_jobs=2)}
    report("intrinsic_dimension, 10,000, d = 784, k = 20",
           lambda: metrics.intrinsic_dimension(x, k=20), theirs)


def mmd():
    torch.manual_seed(0)
    x, y = torch.rand(2, 10_000, 784, dtype=torch.float64)

    def gram(a, b, exp):
        squares = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T
        return exp(-squares / (2 * 10.0**2)).mean()

    def naive(x, y, exp):
        return gram(x, x, exp) + gram(y, y, exp) - 2 * gram(x, y, exp)

    peers = {
        "naive float64 Gram matrices, torch": lambda: naive(x, y, torch.exp),
        "naive float64 Gram matrices, numpy": lambda: naive(x.numpy(), y.numpy(), np.exp),
    }
    report("mmd, 10,000 x 10,000, d = 784", lambda: metrics.mmd(x, y, bandwidth=10.0), peers)


def evaluation(dataset, data_dir):
    import gran

    args = gran.parse_args(["--dataset", dataset, "--data-dir", data_dir])
    args.channels, args.size = data.load(dataset, data_dir)[0].shape[1:3]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        metrics.save_run(Path(folder) / "gran5", "gran", args, 0, gran.build(args), {})
        metrics.classifier_of(dataset, data_dir)
        began = time.perf_counter()
        command = [sys.executable, ROOT / "metrics.py", "eval", Path(folder) / "gran5"]
        command += ["--data-dir", data_dir]
        subprocess.run(command, check=True)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        seconds = time.perf_counter() - began
        print(f"eval of one run, n = 10,000: {seconds:.2f} s in all, peak {peak:.2f} GiB")


PARTS = {"frechet": frechet, "neighbours": neighbours, "mmd": mmd, "eval": evaluation}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if len(args.part) == 1:
        PARTS[args.part[0]](*([args.dataset, args.data_dir] if args.part == ["eval"] else []))
        if args.json:
            known = json.loads(args.json.read_text())["rows"] if args.json.exists() else []
            args.json.write_text(json.dumps({"rows": known + ROWS}, indent=1) + "\n")
    else:
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
        if args.json:
            args.json.unlink(missing_ok=True)
        for part in args.part or PARTS:
            command = [sys.executable, __file__, part, "--dataset", args.dataset]
            command += ["--json", args.json] if args.json else []
            subprocess.run([*command, "--data-dir", args.data_dir], check=True)
