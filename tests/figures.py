"""The papers' one-off figures of a trained run, and the tables of README.md and assets/RESULTS.md.

    python tests/figures.py runs/gran5-mnist        nearest.png and others, into the run's folder
    python tests/figures.py curve FOLDER 200 FLAGS...   DE-GAN's Figure 6, a point every 200 updates
    python tests/figures.py tables                  fill assets/ and the tables from runs/, results/

A table is what lies between <!-- NAME --> and <!-- end -->. Its figures come from
assets/results.json, which holds what tests/reproduce.sh measured: none is typed by hand.
"""

import csv
import json
import math
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torchvision.utils import make_grid, save_image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import data
import dcrw
import de_gan
import gran
import metrics

RESULTS = ROOT / "assets/results.json"


# ---- figures of a run ----------------------------------------------------------------------------


def nearest(run, folder):
    """nearest.png: a sample a row, then its seven nearest training images (GRAN, Figures 7, 24)."""
    images, _ = data.load(run.args.dataset, run.args.data_dir, size=run.args.size)
    labels = torch.arange(10) % len(run.classes) if run.conditional else None
    drawn = run.sample(10, labels).cpu()
    _, found = metrics.nearest(images / 255, 7, queries=drawn)
    rows = torch.cat([drawn[:, None], images[found] / 255], 1)  # (10, 8, C, S, S)
    save_image(rows.flatten(0, 1), folder / "nearest.png", nrow=8)


def longer(run, folder):
    """longer.png: canvases after T, T + 2 and T + 4 steps (GRAN, Figures 34 and 35)."""
    generator, T = torch.Generator().manual_seed(0), run.args.steps
    frames = gran.canvases(run.nets, 32, T + 4, generator, run.args.batch_size)
    grids = [make_grid(frames[t - 1], nrow=8) for t in (T, T + 2, T + 4)]
    save_image(grids, folder / "longer.png", padding=8, pad_value=1)


def times(run, folder):
    """times.png: 64 samples after steps 1, 4, 6 and 10 of 10 (DCRW, Figures 4 and 5)."""
    generator = torch.Generator().manual_seed(run.args.seed)
    frames = dcrw.canvases(run.nets, 64, None, generator, run.args.batch_size)
    shown = [math.ceil(len(frames) * share) - 1 for share in (0.1, 0.4, 0.6, 1)]
    grids = [make_grid(frames[t], nrow=8) for t in shown]
    save_image(grids, folder / "times.png", nrow=4, padding=8, pad_value=1)


@torch.no_grad()
def lines(run, folder):
    """interpolation.png: a row is a straight line of G's input between draws (DE-GAN, Figure 7)."""
    G = run.nets.get("ema", run.nets["G"])
    ends = de_gan.draw_noise(run.nets, 16, torch.Generator().manual_seed(0)).unflatten(0, (2, 8, 1))
    z = torch.lerp(*ends, torch.linspace(0, 1, 10, device=ends.device)[:, None])  # (8, 10, Z)
    rows = torch.arange(8, device=z.device).repeat_interleave(10)  # one label a row
    images = G(z.flatten(0, 1), rows % G.classes if G.classes else None)
    save_image(images, folder / "interpolation.png", nrow=10)


def plane(run, folder, n=2000):
    """noise.png: principal planes of z_n and of z', on one scale (DE-GAN, Figure 11)."""
    def principal(x):
        x = (x - x.mean(0)).double()
        return x @ torch.linalg.svd(x, full_matrices=False).Vh[:2].T

    generator = torch.Generator().manual_seed(0)
    z_n = torch.randn(n, run.nets["G"].z_dim, generator=generator)
    after = de_gan.draw_noise(run.nets, n, generator).cpu()
    clouds = {"z_n ~ N(0, I)": principal(z_n), "z', after decoder and encoder": principal(after)}
    scale = max(cloud.abs().max() for cloud in clouds.values())
    picture = Image.new("L", (800, 430), 255)
    pen = ImageDraw.Draw(picture)
    for left, (name, cloud) in zip((0, 400), clouds.items()):
        a, b = cloud.std(0).tolist()
        pen.rectangle((left + 10, 25, left + 390, 405), outline=160)
        pen.text((left + 14, 8), name, fill=0)
        pen.text((left + 14, 410), f"standard deviations {a:.2f}, {b:.2f}", fill=0)
        for x, y in (cloud / scale * 185).tolist():
            pen.ellipse((left + 199 + x, 214 + y, left + 201 + x, 216 + y), fill=0)
    picture.save(folder / "noise.png")


@torch.no_grad()
def latent_map(run, folder):
    """latent-map.png: decoded z at 20 quantiles of N(0, 1) each way (Kingma, Welling, Figure 4)."""
    quantiles = torch.special.ndtri((torch.arange(20) + 0.5) / 20)
    z = torch.cartesian_prod(quantiles.flip(0), quantiles).flip(1).to(run.device)  # (400, 2)
    maps = []
    for label in range(min(run.args.classes, 10) or 1):
        y = torch.full((len(z),), label, device=run.device) if run.conditional else None
        maps.append(make_grid(run.nets["decoder"](z, y).sigmoid(), 20, padding=0))
    save_image(maps, folder / "latent-map.png", nrow=5, padding=8, pad_value=1)


def figures(folder):
    """All figures that the run in a folder has."""
    run, folder = metrics.load_run(folder), Path(folder)
    nearest(run, folder)
    if run.script == "gran" and run.args.steps > 1:
        longer(run, folder)
    if run.script == "dcrw":
        times(run, folder)
    if run.script == "de_gan":
        lines(run, folder)
        if "vae" in run.nets:
            plane(run, folder)
    if run.script == "vae" and run.args.z_dim == 2:
        latent_map(run, folder)


def curve(folder, every, *flags, n=2000):
    """FOLDER/accuracy.csv: share of n samples read as their label, at 9 points of a training.

    Each point resumes the run, exactly on a CPU. flags: of de_gan.py; give --vae-iters, --epochs,
    which --iters would change, and --ema 0, since a young average holds G's first weights.
    """
    file = Path(folder) / "accuracy.csv"
    rows = [line.split(",") for line in file.read_text().split()] if file.exists() else []
    rows = rows or [["updates", "accuracy"]]
    for updates in range(len(rows) * int(every), 10 * int(every), int(every)):
        start, reached = ["--out", folder, *flags], 0
        if (Path(folder) / "checkpoint.pt").exists():
            start, checkpoint = ["--resume", folder], metrics.load_checkpoint(folder)
            reached = checkpoint["step"] - (checkpoint["args"]["vae_iters"] or 0)
        if reached < updates:
            de_gan.main([*start, "--iters", str(updates)])
        run, labels = metrics.load_run(folder), torch.arange(n)
        classifier = metrics.classifier_of(run.args.dataset, run.args.data_dir, run.args.size)
        labels = labels % len(run.classes)
        images = run.sample(n, labels, seed=1)
        rows.append([updates, metrics.test_accuracy(classifier, images, labels)])
        with file.open("w", newline="") as opened:
            csv.writer(opened).writerows(rows)


# ---- tables --------------------------------------------------------------------------------------


def collect():
    """Merge what runs/ and results/ hold into assets/results.json."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"measures": {}, "runs": {}}
    for file in sorted((ROOT / "results").glob("*.json")):
        found["measures"][file.stem] = json.loads(file.read_text())
    for done in sorted((ROOT / "runs").glob("*/done")):
        rows = list(csv.DictReader((done.parent / "log.csv").open(newline="")))
        args = json.loads((done.parent / "args.json").read_text())
        steps = [0, *(int(row["step"]) for row in rows)]
        seconds = sum((b - a) * args["batch_size"] / float(row["images_per_s"])
                      for a, b, row in zip(steps, steps[1:], rows))
        run = {"updates": steps[-1], "minutes": round(seconds / 60, 2)}
        if (done.parent / "bound.csv").exists():
            *_, last = csv.DictReader((done.parent / "bound.csv").open(newline=""))
            run |= {name: float(last[name]) for name in ("bound", "reconstruction", "kl")}
        found["runs"][done.parent.name] = run
    for file in sorted((ROOT / "runs").glob("curve-*/accuracy.csv")):
        found.setdefault("curves", {})[file.parent.name] = list(csv.reader(file.open(newline="")))
    for file in sorted((ROOT / "runs").glob("*/explore/*.txt")):
        lines = [line.split(": ", 1) for line in file.read_text().splitlines()]
        found.setdefault("explorations", {})[file.stem] = dict(lines)
    calls = ROOT / "results/calls"  # seconds of each call of the whole list
    if calls.exists():
        seconds = [int(line) for line in calls.read_text().split()]
        git = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True)
        took = f"{sum(seconds) / 60:.0f} minutes, {len(seconds)} call{'s' * (len(seconds) > 1)}"
        found["made"] = {"commit": git.strip(), "torch": torch.__version__.split("+")[0],
                         "machine": f"two cores of {processor()}", "took": took}
    RESULTS.write_text(json.dumps(found, indent=0, sort_keys=True) + "\n")


def processor():
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"an {names[0]}" if names else platform.machine()


def spread(values, form="{:.3g}"):
    """mean (least to most); the value alone where there is one."""
    values = [value for value in values if value is not None]
    if not values:
        return ""
    mean, least, most = (form.format(f(values)) for f in (lambda v: sum(v) / len(v), min, max))
    return mean if least == most else f"{mean} ({least} to {most})"


def rows_of(found, result, name):
    """The rows of that name in results RESULT-0, RESULT-1, ...; name may hold SEED."""
    rows = []
    for key, content in sorted(found["measures"].items()):
        if re.fullmatch(rf"{result}-\d", key):
            wanted = name.replace("SEED", key[-1])
            rows += [row for row in content["rows"] if row["name"] == wanted]
    return rows


def runs_of(found, name):
    return [run for key, run in sorted(found["runs"].items()) if re.fullmatch(rf"{name}-\d", key)]


def table(head, rows):
    if not any(row[0][:1] != "*" for row in rows):
        return "*Not run with this version.*"
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


MEASURES = {  # column: value of a row of `eval`, format
    "FID": (lambda row: row["fid"], "{:.3g}"),
    "MMD, 1e-3": (lambda row: 1000 * row["mmd"], "{:.2g}"),
    "kNN, min": (lambda row: row["knn"]["min"], "{:.3f}"),
    "> 0.9, %": (lambda row: 100 * row["above_0.9"] if "above_0.9" in row else None, "{:.0f}"),
    "as label, %": (lambda row: 100 * row["accuracy"] if "accuracy" in row else None, "{:.1f}"),
    "rdd": (lambda row: row["rdd"]["mean"], "{:.2f}"),
}


def measured(found, result, models, columns=tuple(MEASURES)):
    """A table of models {title: (name of the row, run)} by columns of MEASURES, and the minutes."""
    rows = []
    for title, name in models.items():
        own = rows_of(found, result, name)
        if own:
            cells = [spread([MEASURES[c][0](row) for row in own], MEASURES[c][1]) for c in columns]
            runs = runs_of(found, name.replace("-SEED", ""))
            minutes = spread([run["minutes"] for run in runs], "{:.0f}")
            rows.append([title, *cells, minutes])
    return table(["", *columns, "minutes"], rows)


def battles(found, result):
    rows = []
    for battle in found["measures"].get(f"{result}-0", {"battles": []})["battles"]:
        name = f"{battle['M1']} vs. {battle['M2']}"
        keys = ("r_test", "r_sample", "winner", "winner_overfit")
        cells = [battle.get(key) for key in keys]
        rows.append([name, *(f"{c:.3g}" if isinstance(c, float) else c or "" for c in cells)])
    return table(["battle", "r_test", "r_sample", "eq. 11", "by overfitting"], rows)


def table_3(found):
    """The error of each GRAN's D on the samples of models that have none."""
    games = found["measures"].get("table3-0", {"battles": []})["battles"]
    errors = {tuple(game[m].split("-")[0] for m in ("M1", "M2")): game["error"]
              for game in games if game.get("error") is not None}
    paper = {"dvae": ("0.058", "0.01"), "draw": ("0.347", "0.106")}
    rows = [[name.upper(), *(cell for gran, own in zip(("gran1", "gran3"), theirs)
                             for cell in (own, f"{errors[gran, name]:.3f}"))]
            for name, theirs in paper.items() if ("gran1", name) in errors]
    return table(["samples of", "paper, GRAN1", "GRAN1's D", "paper, GRAN3", "GRAN3's D"], rows)


def bounds(found, models):
    rows = []
    for title, (name, paper) in models.items():
        runs = runs_of(found, name)
        if runs:
            cells = [spread([run[key] for run in runs], "{:.1f}") for key in
                     ("reconstruction", "kl", "bound")]
            rows.append([title, paper, *cells, spread([run["minutes"] for run in runs], "{:.0f}")])
    head = ["nats, 10,000 test images", "paper", "reconstruction", "KL", "bound", "minutes"]
    return table(head, rows)


def per_class(found, result, models, paper):
    rows = []
    for title, name in models.items():
        own = rows_of(found, result, name)
        if own:
            classes = sorted(own[0]["rdd"]["per_class"])
            values = [sum(row["rdd"]["per_class"][c] for row in own) / len(own) for c in classes]
            rows.append([title, paper[title], f"{sum(values) / len(values):.2f}",
                         f"{min(values):.2f} to {max(values):.2f}"])
    return table(["rdd (Table VI)", "paper, mean", "mean", "least and most digit"], rows)


def kernels(found):
    """assets/kernels.csv: kernels an update on CUDA, counted on a stub of its runtime."""
    rows = list(csv.reader((ROOT / "assets/kernels.csv").open(newline="")))
    return table(rows[0], rows[1:])


def speed(found):
    rows = [[row["part"], row["batch"], f"{row['ms']:.1f}", f"{row['images_per_s']:.0f}",
             *(f"{row[kind][0]:.2f} to {row[kind][-1]:.2f}" if kind in row else ""
               for kind in ("ratios", "competent"))]
            for row in found["measures"].get("speed-0", {"rows": []})["rows"]]
    return table(["MNIST size", "batch", "ms an update", "images/s", "times the usual loop",
                  "a competent one"], rows)


def speed_metrics(found):
    """Seconds of the measures and of their peers, from tests/bench_metrics.py --json."""
    rows = [[row["measure"], f"{row['seconds']:.2f}", row["peer"], f"{row['ratio']:.2f}"]
            for row in found["measures"].get("speed-metrics-0", {"rows": []})["rows"]
            if "alone" not in row["peer"]]
    return table(["measure", "seconds", "next to", "times as long"], rows)


def dimension(found):
    """DE-GAN, Figure 4 and Table I: the estimate goes on falling with k."""
    rows = [[f"{row['k']}", f"{row['levina']:.1f}", f"{row['mackay']:.1f}"]
            for row in found["measures"].get("dim-mnist-0", {"dimension": []})["dimension"]]
    return table(["k", "mean of m_k (eq. 16)", "inverse mean"], rows)


def curves(found):
    """DE-GAN, Figure 6: how often samples are read as their label, over the updates."""
    names = {"curve-de_gan": "DE-GAN, %", "curve-plain": "plain noise, %"}
    both = [found.get("curves", {}).get(name, [[]])[1:] for name in names]
    rows = [[one[0], *(f"{100 * float(row[1]):.1f}" for row in (one, other))]
            for one, other in zip(*both)]
    return table(["updates", *names.values()], rows)


def parts(found):
    """What the runs of each part of tests/reproduce.sh took, one thread each."""
    lines, minutes = (ROOT / "tests/reproduce.sh").read_text(), {}
    for part, name in re.findall(r"^(\w+) +(\S+) +\d +\w+\.py ", lines, re.MULTILINE):
        minutes.setdefault(part, []).extend(run["minutes"] for run in runs_of(found, name))
    rows = [[part, len(own), f"{sum(own):.0f}"] for part, own in minutes.items()]
    return table(["part", "runs", "minutes of one thread"], rows)


def slides(found):
    """What --explore found, a row each; the slides' own figures where they have one."""
    theirs = {("features", "10000 labels, class"): "82.8 % (features of ImageNet)",
              ("nearest", "50000 images"): "about 3 %"}
    rows = [[name, title, theirs.get((name, title), ""), text]
            for name, lines in found.get("explorations", {}).items()
            for title, text in lines.items() if title != "as drawn"]
    return table(["exploration", "of", "slides", "here"], rows)


REAL = {"*other real images*": "other real images"}
LABELS = {"DCGAN": "dcgan-labels-SEED", "AAE": "aae-labels-SEED", "VAE": "vae-labels-SEED",
          "GAN": "gan-labels-SEED"}
TELUGU = {"DRAW": "draw-telugu-SEED", "DRAW-GAN": "draw-gan-telugu-SEED",
          "VAE": "vae-telugu-SEED", "InfoVAE": "info-telugu-SEED"}
TRIED = {"GRAN1, --decay 0": "gran1-decay0-SEED", "GRAN5, --decay 0": "gran5-decay0-SEED",
         "GRAN5, --ema 0": "gran5-ema0-SEED", "GRAN5, twice the rates": "gran5-rates-SEED",
         "DCGAN, labels, rates 2e-4": "dcgan-2e-4-SEED",
         "DCGAN, labels, rates 16e-4": "dcgan-16e-4-SEED",
         "DCGAN, labels, --decay 0": "dcgan-decay0-SEED",
         "DCGAN, labels, --ema 0": "dcgan-ema0-SEED",
         "DE-GAN, labels, --decay 0": "de_gan-decay0-SEED",
         "DE-GAN, labels, --ema 0": "de_gan-ema0-SEED",
         "WGAN, labels, rates 5e-5": "wgan-5e-5-SEED",
         "DCRW, --lr 2e-3": "dcrw-2e-3-SEED", "DRAW, --lr-g 2e-3": "draw-lr2-SEED",
         "DRAW, --lr-g 2e-3 --read 2": "draw-read2-SEED",
         "DRAW-GAN, --adversarial 3": "draw-gan-3-SEED",
         "DRAW-GAN, --adversarial 30": "draw-gan-30-SEED", "DRAW-GAN, --r1 3": "draw-gan-r3-SEED",
         "DRAW-GAN, --lr-d 1.2e-3": "draw-gan-rate-SEED",
         "DRAW-GAN, --warm-up 900": "draw-gan-half-SEED",
         "AAE, labels, --z-dim 20": "aae-z20-SEED", "InfoVAE, --z-dim 20": "info-z20-SEED",
         "InfoVAE, --z-dim 20 --mmd-weight 1000": "info-z20-1000-SEED",
         "InfoVAE, --z-dim 12": "info-z12-SEED", "InfoVAE, --z-dim 6": "info-z6-SEED",
         "InfoVAE, --mmd-weight 30": "info-30-SEED", "InfoVAE, --mmd-weight 300": "info-300-SEED"}
CIFAR10 = {"DCGAN": "dcgan-cifar10-SEED", "DE-GAN": "de_gan-cifar10-SEED",
           "VAE": "vae-cifar10-SEED"}
QUICK = {"GRAN1": "gran1", "GRAN3": "gran3", "GRAN5": "gran5", "DRAW": "draw",
         "DRAW-GAN": "draw-gan", "DCRW": "dcrw", "VAE": "vae", "DCGAN, labels": "dcgan",
         "DE-GAN, labels": "de_gan"}
QUICK = {title: f"{name}-quick-SEED" for title, name in QUICK.items()}
FEW = ("FID", "MMD, 1e-3", "kNN, min", "as label, %")
PIXELS = ("FID", "MMD, 1e-3", "kNN, min", "rdd")  # where there is no classifier
TABLES = {
    "made": lambda f: "Commit {commit}, torch {torch}, {machine}; {took}.".format(**f["made"]),
    "parts": parts,
    "kernels": kernels,
    "speed": speed,
    "speed_metrics": speed_metrics,
    "dimension": dimension,
    "quick": lambda f: measured(f, "quick", REAL | QUICK),
    "battles": lambda f: battles(f, "battles"),
    "tried": lambda f: measured(f, "tried(-.*)?", TRIED, FEW),
    "tried_battles": lambda f: battles(f, "battles-decay0"),
    "noise": lambda f: measured(f, "(noise|quick)", {
        "one noise": "gran3-quick-0", "a noise for each step": "gran3-per-step-0"}),
    "gran_cifar10": lambda f: measured(f, "gran3?-cifar10(-rates)?", REAL | {
        "GRAN1": "gran1-cifar10-SEED", "GRAN3": "gran3-cifar10-SEED",
        "GRAN1, the authors' rates": "gran1-cifar10-rates-SEED"}),
    "battle_cifar10": lambda f: battles(f, "battle-cifar10"),
    "slides": slides,
    "curves": curves,
    "draw": lambda f: measured(f, "(draw|draw-5|info)", REAL | {
        "DRAW": "draw-SEED", "DRAW, 5 epochs": "draw-5-SEED", "InfoVAE": "info-SEED"}),
    "labels": lambda f: measured(f, "labels(-once)?", REAL | LABELS),
    "wgan": lambda f: measured(f, "wgan", {"WGAN": "wgan-labels-SEED"}),
    "telugu": lambda f: measured(f, "telugu", REAL | TELUGU, PIXELS),
    "cifar10": lambda f: measured(f, "cifar10", REAL | CIFAR10),
    "table3": table_3,
    "table4": lambda f: battles(f, "table4"),
    "bounds": lambda f: bounds(f, {
        "DRAW, T = 10": ("draw", "80.97 at T = 64"), "DRAW, 4 epochs": ("draw-quick", ""),
        "with --lr-g 2e-3": ("draw-lr2", ""), "with --lr-g 2e-3 --read 2": ("draw-read2", ""),
        "DCRW, 4 epochs": ("dcrw-quick", "71.7"),
        "DCRW, no attention in read": ("dcrw-none", "178.3")}),
    "rdd": lambda f: per_class(f, "labels(-once)?", LABELS, {
        "DCGAN": 0.98, "VAE": 0.80, "AAE": "", "GAN": ""}),
    "readme": lambda f: readme(f),
}


def readme(found):
    """One line a model: FID and MMD, means of the seeds."""
    rows = []
    for title, name in (REAL | QUICK).items():
        own = rows_of(found, "quick", name)
        if own:
            runs = runs_of(found, name.replace("-SEED", ""))
            rows.append([title, spread([row["fid"] for row in own]),
                         spread([1000 * row["mmd"] for row in own], "{:.2g}"),
                         f"{runs[0]['updates']:,}" if runs else "",
                         spread([run["minutes"] for run in runs], "{:.1f}")])
    return table(["MNIST", "FID", "MMD, 1e-3", "updates", "minutes, one core"], rows)


def fill(text, found):
    """text with every table between <!-- NAME --> and <!-- end --> made from `found`."""
    def made(match):
        return f"<!-- {match[1]} -->\n{TABLES[match[1]](found)}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?\n?<!-- end -->", made, text, flags=re.DOTALL)


PICTURES = {  # of assets/: a run's picture, or its last grid of samples
    "gran1-mnist.png": "gran1-quick-0", "gran5-mnist.png": "gran5-quick-0",
    "gran5-mnist.gif": "gran5-quick-0/steps.gif",
    "gran5-mnist-steps.png": "gran5-quick-0/steps.png",
    "gran5-neighbours.png": "gran5-quick-0/nearest.png", "gran1-cifar10.png": "gran1-cifar10-0",
    "gran3-cifar10.png": "gran3-cifar10-0", "draw-mnist.png": "draw-quick-0",
    "draw-mnist.gif": "draw-0/steps.gif", "draw-gan-mnist.png": "draw-gan-quick-0",
    "dcrw-mnist.png": "dcrw-quick-0", "dcrw-times.png": "dcrw-quick-0/times.png",
    "vae-mnist.png": "vae-quick-0", "draw-telugu.png": "draw-telugu-0",
    "draw-gan-telugu.png": "draw-gan-telugu-0", "dcgan-mnist-labels.png": "dcgan-quick-0",
    "de_gan-mnist-labels.png": "de_gan-quick-0", "dcgan-faces.png": "dcgan-faces-0",
    "de_gan-faces.png": "de_gan-faces-0", "de_gan-lines.png": "de_gan-faces-0/interpolation.png",
    "de_gan-noise.png": "de_gan-quick-0/noise.png", "dcgan-cifar10-labels.png": "dcgan-cifar10-0",
    "faces-walk.png": "dcgan-faces-0/explore/walk.png",
    "faces-arithmetic.png": "dcgan-faces-0/explore/arithmetic.png",
    "faces-forget.png": "dcgan-faces-0/explore/forget.png",
    "faces-filters.png": "dcgan-faces-0/explore/filters.png",
}


def pictures():
    """Copy the pictures of the runs that there are to assets/."""
    for name, source in PICTURES.items():
        place = ROOT / "runs" / source
        files = [place] if place.suffix else sorted(place.glob("samples/*.png"))[-1:]
        for file in files:
            if file.exists():
                shutil.copyfile(file, ROOT / "assets" / name)


def tables():
    pictures()
    collect()
    found = json.loads(RESULTS.read_text())
    for page in (ROOT / "README.md", ROOT / "assets/RESULTS.md"):
        page.write_text(fill(page.read_text(), found))


if __name__ == "__main__":
    what, *rest = sys.argv[1:] or [""]
    if what == "tables":
        tables()
    elif what == "curve":
        curve(*rest)
    elif what:
        figures(what)
    else:
        print(__doc__)
