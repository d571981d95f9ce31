"""Measures of image generators, and the runs they are taken of.

    python metrics.py gam runs/gran1-mnist runs/gran3-mnist runs/gran5-mnist --dataset mnist
    python metrics.py eval runs/gran5-mnist runs/vae-mnist samples.npz --dataset mnist

Images are float32 (n, C, H, W) in [0, 1]. The measures are plain functions of tensors: they take (n, ...) inputs of
any dtype on any device, flatten them to rows, work in float64 and give back floats or dicts of floats, so each can be
copied out on its own.
"""

import argparse
import contextlib
import csv
import importlib
import inspect
import json
import math
import os
import pickle
import re
import signal
import zipfile
from pathlib import Path

import torch
from torch import nn

from data import InputError

HERE = Path(__file__).resolve().parent


# ---------------------------------------------------------------------------------------------------------------- runs


def save_run(folder, script, args, step, nets, optimisers):
    """Write folder/checkpoint.pt: everything needed to sample a run or to go on with it.

    `args` is a Namespace or dict; `nets` and `optimisers` are dicts of objects with a state_dict. The file is written
    beside its place, synced and moved there in one step, so a run killed at any moment keeps its last good
    checkpoint. Raises OSError.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    values = args if isinstance(args, dict) else vars(args)
    checkpoint = {
        "script": script,
        "args": json.loads(json.dumps(values, default=str)),  # plain values only, as in args.json: paths become strings
        "step": step,
        "nets": {name: net.state_dict() for name, net in nets.items()},
        "optimisers": {name: optimiser.state_dict() for name, optimiser in optimisers.items()},
        "rng": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        },
    }
    temporary = folder / "checkpoint.pt.part"
    with open(temporary, "wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / "checkpoint.pt")


def load_checkpoint(path, script=None):
    """The dict that `save_run` wrote, on the CPU. `path` is a run's folder or its checkpoint file.

    Only tensors and plain values are read (weights_only), so a file with code in it is refused and nothing of it runs.
    Raises InputError if the file is missing, broken, not ours, or of another script than `script`.
    """
    path = Path(path)
    file = path / "checkpoint.pt" if path.is_dir() else path
    if not file.exists():
        reason = "the folder holds no checkpoint.pt" if path.is_dir() else "no such file or folder"
        raise InputError(f"{path} is not a run: {reason}; give the folder that a training script wrote (its --out)")
    if not zipfile.is_zipfile(file):  # also says no to a truncated file: the zip's directory is at its end
        raise InputError(f"{file} is broken or not a checkpoint; train the run again, or take a whole copy of the file")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, LookupError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{file} cannot be read as a checkpoint of tensors and plain values: {reason}") from error
    wanted = {"script": str, "args": dict, "step": int, "nets": dict, "optimisers": dict, "rng": dict}
    for key, kind in wanted.items():
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(key), kind):
            raise InputError(f"{file} is not a checkpoint of these scripts: it has no {key!r} of type {kind.__name__}")
    if script is not None and checkpoint["script"] != script:
        raise InputError(f"{path} was written by {checkpoint['script']}.py, not by {script}.py; use that script for it")
    return checkpoint


class Run:
    """A trained model as the measures see it.

    `sample(n, labels=None, seed=0)` draws images; `logits(x, labels=None)` are D's scores, or None where the run has
    no image discriminator. `nets`, `args` (Namespace), `step`, `script`, `conditional` and `name` are as the run left
    them.
    """

    def __init__(self, module, nets, args, step, script, name, device, steps=None):
        self.module, self.nets, self.args, self.step, self.script = module, nets, args, step, script
        self.name, self.device, self.steps = name, torch.device(device), steps
        self.conditional = bool(getattr(args, "conditional", False))
        self.logits = self._logits if "D" in nets else None

    def sample(self, n, labels=None, seed=0):
        """(n, C, H, W) float32 in [0, 1] on the run's device, by int64 `labels` (n,); the same seed, the same pictures."""
        extra = {} if self.steps is None else {"steps": self.steps}
        generator = torch.Generator().manual_seed(seed)
        if labels is not None:
            labels = labels.to(self.device)
        return self.module.sample(
            self.nets, n, labels=labels, generator=generator, batch_size=self.args.batch_size, **extra
        )

    @torch.no_grad()
    def _logits(self, x, labels=None):
        """D's logits (n,) on the CPU for x (n, C, H, W); positive reads "real".

        Scored in batches of the training size, the last one filled up by wrapping round, so that batch norm in D sees
        statistics of the kind it was trained with. Feed real and generated images apart: D never met them in one
        batch.
        """
        if self.conditional and labels is None:
            raise ValueError(f"labels: the discriminator of {self.name} is conditional and needs them")
        out = []
        for start in range(0, len(x), self.args.batch_size):
            index = torch.arange(start, start + self.args.batch_size) % len(x)
            batch = [x[index.to(x.device)].to(self.device)]
            if self.conditional:
                batch.append(labels[index.to(labels.device)].to(self.device))
            out.append(self.nets["D"](*batch).float().cpu())
        return torch.cat(out)[: len(x)]


def load_run(path, device="cpu", steps=None):
    """The run in a folder (or checkpoint file) as a `Run`, its nets on `device` in evaluation mode.

    `steps` draws a recurrent model with that many steps instead of its own T (GRAN, Table 4). The script that the
    checkpoint names is imported only if it stands beside this file. Raises InputError for anything that is not a run
    of ours.
    """
    checkpoint = load_checkpoint(path)
    script = checkpoint["script"]
    plain = re.fullmatch(r"[a-z][a-z0-9_]*", script) and script not in ("data", "metrics")
    if not plain or not (HERE / f"{script}.py").is_file():
        raise InputError(f"{path} names the script {script!r}, and no such script stands beside metrics.py")
    module = importlib.import_module(script)
    if steps is not None and ("steps" not in inspect.signature(module.sample).parameters or steps < 1):
        raise InputError(f"{path}@{steps}: @STEPS is for recurrent models, from 1 step on; {script}.py takes none such")
    args = argparse.Namespace(**checkpoint["args"])
    try:
        nets = module.build(args)
        for name, net in nets.items():
            net.load_state_dict(checkpoint["nets"][name])
            net.to(device).eval()
    except (AttributeError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{path} does not fit {script}.py as it is now: {reason}; use the version of then") from error
    for layer in nets["D"].modules() if "D" in nets else ():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):  # D judges with batch statistics, as in training,
            layer.train()
            layer.track_running_stats = False  # and leaves its running averages alone
    name = Path(path).resolve()
    name = (name if name.is_dir() else name.parent).name + ("" if steps is None else f"@{steps}")
    return Run(module, nets, args, checkpoint["step"], script, name, device, steps)


def restore_run(path, nets, optimisers):
    """Puts nets, optimisers and random states back to where the checkpoint left them; -> its step."""
    checkpoint = load_checkpoint(path)
    for name, net in nets.items():
        net.load_state_dict(checkpoint["nets"][name])
    for name, optimiser in optimisers.items():
        optimiser.load_state_dict(checkpoint["optimisers"][name])
    torch.set_rng_state(checkpoint["rng"]["cpu"])
    if checkpoint["rng"]["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(checkpoint["rng"]["cuda"])
    return checkpoint["step"]


FREE_ON_RESUME = {"data_dir", "device", "epochs", "iters", "log_every", "sample_every", "compile", "amp"}


def resumed_args(parser, argv, script, free=()):
    """The arguments of the run that --resume names, and over them what was typed.

    What would make it another run cannot be typed anew: only FREE_ON_RESUME and the names in `free` may differ. With
    --epochs typed, an --iters of the run's start no longer holds.
    """
    resume = parser.parse_args(argv).resume
    saved = load_checkpoint(resume, script)["args"]
    typed = parser.parse_args(argv, argparse.Namespace(out=None, resume=None, sample=None, **saved))
    for name in saved.keys() - FREE_ON_RESUME - set(free):
        if getattr(typed, name) != saved[name]:
            parser.error(f"--{name.replace('_', '-')} is {saved[name]} in {resume} and cannot be changed")
    if typed.out and not typed.sample:
        parser.error("--out does not go with --resume: a run goes on in its own folder")
    if typed.epochs != saved["epochs"] and typed.iters == saved["iters"]:
        typed.iters = None
    return typed


def write_samples(args, steps=None):
    """--sample: writes args.sample images of the run args.resume as PNG files into a new folder (args.out)."""
    from torchvision.utils import save_image

    run = load_run(args.resume, args.device, steps=steps)
    folder = Path(args.out or Path(args.resume) / ("drawn" if steps is None else f"drawn-{steps}-steps"))
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: name another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    images = run.sample(args.sample, seed=args.seed)
    for i, image in enumerate(images):
        save_image(image, folder / f"{i:06}.png")
    print(f"{len(images)} images are in {folder}")


def open_log(path, start, columns):
    """A csv writer that goes on after the row of step `start`; rows past the checkpoint are written anew."""
    rows = []
    if start and path.exists():
        with open(path, newline="") as file:
            rows = [row for row in csv.reader(file) if row and row[0].isdigit() and int(row[0]) <= start]
    file = open(path, "w", newline="", buffering=1)
    writer = csv.writer(file)
    writer.writerows([columns, *rows])
    return writer


@contextlib.contextmanager
def ctrl_c():
    """Inside, the first Ctrl-C only fills the list given, so that a loop can end between two updates; a second ends at once."""
    caught = []

    def stop(signum, frame):
        caught.append(signum)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, before)


# ----------------------------------------------------------------------------------------------------------------- GAM


def _ratio(a, b):
    if a == b:
        return 1.0  # 0 / 0 included: neither does worse
    return a / b if b else math.inf


def _ratio_interval(a, b, n_a, n_b):
    """95 % interval of the ratio of two independent error rates (Katz's log interval; a count of 0 enters as 1/2)."""
    if a == 0 and b == 0:
        return 0.0, math.inf
    count_a, count_b = max(a * n_a, 0.5), max(b * n_b, 0.5)
    centre = math.log((count_a / n_a) / (count_b / n_b))
    half = 1.959964 * math.sqrt(max(1 / count_a - 1 / n_a + 1 / count_b - 1 / n_b, 0.0))
    return (math.exp(centre - half) if a else 0.0), (math.exp(centre + half) if b else math.inf)


def gam_from_errors(e1_test, e2_test, e1_fake, e2_fake, n=None, tolerance=0.3, n_test=None):
    """The Generative Adversarial Metric, eqs. 10 and 11 of Im et al. 2016 (arXiv 1602.05110), from four error rates.

    e1_test: share of the test images that D1 calls generated; e1_fake: share of G2's samples that D1 calls real; e2_*
    likewise for D2, on G1's samples. r_test = e1_test / e2_test, r_sample = e1_fake / e2_fake; 0 / 0 is 1 and x / 0
    infinite. The winner is M1 if r_sample < 1, M2 if r_sample > 1, and a tie at 1 or unless r_test is within a factor
    of 1 + tolerance of 1 either way (the paper's own winners have 0.79 to 1.29). n (samples a player) and n_test
    (test images, n if not given) add 95 % intervals; that of r_test is on the safe side, since both discriminators
    read the same images. Returns {r_test, r_sample, winner: "M1" | "M2" | "tie"}, and {r_test_95, r_sample_95} as
    (low, high), or None without n.
    """
    for name, value in (("e1_test", e1_test), ("e2_test", e2_test), ("e1_fake", e1_fake), ("e2_fake", e2_fake)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: an error rate lies in [0, 1], not {value}")
    if tolerance < 0:
        raise ValueError(f"tolerance: must be 0 or more, not {tolerance}")
    r_test, r_sample = _ratio(e1_test, e2_test), _ratio(e1_fake, e2_fake)
    fair = r_test > 0 and abs(math.log(r_test)) <= math.log1p(tolerance) + 1e-12
    winner = "tie" if not fair or r_sample == 1 else "M1" if r_sample < 1 else "M2"
    n_test = n_test or n
    return {
        "r_test": r_test,
        "r_test_95": _ratio_interval(e1_test, e2_test, n_test, n_test) if n_test else None,
        "r_sample": r_sample,
        "r_sample_95": _ratio_interval(e1_fake, e2_fake, n, n) if n else None,
        "winner": winner,
    }


def error_rates(runs, test_images, n=10000, test_labels=None, seed=0):
    """Who is fooled by what: (test, fake): test[i] is D_i's error rate on the test images, fake[i][j] on G_j's samples.

    The threshold is D = 0.5, a logit of 0. Test images (n, C, H, W) are taken in an order shuffled by `seed`, at most
    n of them. Conditional generators draw with labels sampled from test_labels. Entries of runs without a
    discriminator are None. Raises InputError for image shapes that differ, missing labels, and a conditional
    discriminator that faces a generator without labels.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(test_images), generator=generator)[:n]
    real, labels, fake_labels = test_images[order], None, None
    if any(run.conditional for run in runs):
        if test_labels is None:
            raise InputError("a conditional run needs labelled test images: name a data set that has labels")
        labels = test_labels[order]
        fake_labels = labels[torch.randint(len(labels), (n,), generator=generator)]
        for run in runs:
            others = [other.name for other in runs if not other.conditional and other is not run]
            if run.conditional and run.logits is not None and others:
                raise InputError(f"the D of {run.name} reads image and label, but {others[0]} draws without labels")
    test = [None if run.logits is None else _share(run.logits(real, labels) <= 0) for run in runs]
    fake = [[None] * len(runs) for _ in runs]
    for j, player in enumerate(runs):
        images = player.sample(n, labels=fake_labels if player.conditional else None, seed=seed)
        if images.shape[1:] != real.shape[1:]:
            shapes = " against ".join("x".join(map(str, x.shape[1:])) for x in (images, real))
            raise InputError(f"{player.name} draws images of another shape than the test images: {shapes}")
        for i, judge in enumerate(runs):
            if judge.logits is not None and not (judge.conditional and not player.conditional):
                fake[i][j] = _share(judge.logits(images, fake_labels) > 0)
    return test, fake


def _share(mask):
    return mask.double().mean().item()


def gam(run_a, run_b, test_images, n=10000, test_labels=None, seed=0, tolerance=0.3):
    """The battle of two runs (GRAN, section 4): the four error rates and `gam_from_errors` of them.

    Each discriminator scores batches of its run's training size, real and generated apart, n samples of each opponent
    and at most n test images. If one run has no discriminator the form of Table 3 is returned: {error}, the other's
    error rate on its samples, and winner None. Raises InputError if neither has one; see `error_rates` for the rest.
    """
    if run_a.logits is None and run_b.logits is None:
        raise InputError(f"neither {run_a.name} nor {run_b.name} has a discriminator, so there is no battle to hold")
    test, fake = error_rates([run_a, run_b], test_images, n, test_labels, seed)
    return _battle(test, fake, 0, 1, n, min(n, len(test_images)), tolerance)


def _battle(test, fake, i, j, n, n_test, tolerance):
    rates = {"e1_test": test[i], "e2_test": test[j], "e1_fake": fake[i][j], "e2_fake": fake[j][i]}
    if test[i] is None or test[j] is None:
        return rates | {"error": rates["e2_fake" if test[i] is None else "e1_fake"], "winner": None}
    return rates | gam_from_errors(**rates, n=n, n_test=n_test, tolerance=tolerance)


# ---------------------------------------------------------------------------------------------------------- neighbours


def _rows(x, name, least=1):
    """x as a (n, d) tensor of its own dtype; ValueError if it has fewer than `least` rows, no columns, or NaN."""
    x = torch.as_tensor(x)
    if x.ndim < 2 or len(x) < least or x[0].numel() == 0:
        raise ValueError(f"{name}: needs at least {least} image(s) or feature rows, not a shape of {tuple(x.shape)}")
    if x.is_floating_point() and not x.isfinite().all():
        raise ValueError(f"{name}: holds NaN or infinite values")
    return x.flatten(1)


def nearest(x, k, queries=None):
    """The k nearest rows of x for each query: (distances float64 (m, k), ascending; indices int64 (m, k)).

    Euclidean distances of flattened rows. Without queries, the rows of x are asked for their neighbours and each
    leaves out itself, by index: a duplicate of it counts, at distance 0.
    """
    rows = _rows(x, "x")
    asked = rows if queries is None else _rows(queries, "queries")
    if asked.shape[1] != rows.shape[1]:
        raise ValueError(f"queries: rows of {asked.shape[1]} numbers, but x has {rows.shape[1]}")
    if not 1 <= k <= len(rows) - (queries is None):
        raise ValueError(f"k: {k} neighbours asked of {len(rows)} rows of x")
    rows64 = rows.double()
    distances, indices = [], []
    for start in range(0, len(asked), 500):
        part = torch.cdist(asked[start : start + 500].double(), rows64)
        if queries is None:
            part[torch.arange(len(part)), torch.arange(start, start + len(part))] = math.inf
        near = part.topk(k, largest=False)
        distances.append(near.values)
        indices.append(near.indices)
    return torch.cat(distances), torch.cat(indices)
