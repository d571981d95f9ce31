"""What all six scripts promise alike: flags, run folders, exact resume, bad input, kills."""

import argparse
import ast
import contextlib
import csv
import fcntl
import importlib
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from radon.complexity import cc_visit
from torch.optim.optimizer import register_optimizer_step_post_hook

import data
import metrics

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ["gran", "draw_gan", "dcrw", "de_gan", "dcgan", "vae"]
RECURRENT = ["gran", "draw_gan", "dcrw"]
CONDITIONAL = ["de_gan", "dcgan", "vae"]
SMALL = {  # flags of a quick run
    "gran": ["--size", "8", "--steps", "3"],
    "draw_gan": ["--size", "8", "--steps", "3", "--hidden", "16", "--z-dim", "4", "--write", "3"],
    "dcrw": ["--size", "8", "--steps", "3", "--read", "3", "--write", "3", "--z-dim", "3"],
    "de_gan": ["--noise", "plain", "--z-dim", "64"],
    "dcgan": ["--width", "4"],
    "vae": ["--size", "8", "--hidden", "16", "--z-dim", "3"],
}
LIMITS = {"gran.py": 340, "dcrw.py": 340, "vae.py": 370, "draw_gan.py": 450, "de_gan.py": 450,
          "dcgan.py": 620, "data.py": 714, "metrics.py": 1210}

every_script = pytest.mark.parametrize("script", SCRIPTS)


def noise(folder, *channels):
    """A folder of forty noisy pictures of 28 px, in two classes."""
    rng = np.random.default_rng(0)
    for i in range(40):
        place = folder / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 256, (28, 28, *channels), dtype=np.uint8)
        Image.fromarray(picture).save(place / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return noise(tmp_path_factory.mktemp("data") / "noise")


def call(script, *argv):
    """main(argv) in this process -> (exit status, stdout, stderr)."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            importlib.import_module(script).main([str(arg) for arg in argv])
        except SystemExit as stop:
            status = stop.code or 0
    return status, out.getvalue(), err.getvalue()


def flags(script, pictures, out):
    return ["--dataset", pictures, "--data-dir", pictures.parent, "--out", out, "--device", "cpu",
            "--batch-size", 6, *SMALL[script]]


def train(script, pictures, out, *more, iters=2):
    """A small run, which must end well -> its checkpoint."""
    status, _, err = call(script, *flags(script, pictures, out), "--iters", iters, *more)
    assert status == 0, err
    return metrics.load_checkpoint(out, script)


def refused(script, *argv):
    """What a call says that must end with status 2 and one line on stderr."""
    status, _, err = call(script, *argv)
    lines = [line for line in err.splitlines()
             if not line.startswith(("note:", "warning:"))]
    assert status == 2 and len(lines) == 1, (status, err)
    assert lines[0].startswith(f"{script}.py: error: "), err
    return lines[0]


def same(a, b):
    """Whether two checkpoints, or parts of them, are equal bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


def table(path):
    """The rows of a csv without its column of speeds."""
    with open(path, newline="") as file:
        rows = csv.DictReader(file)
        return [{k: v for k, v in row.items() if k != "images_per_s"} for row in rows]


def contents(folder):
    """{file: content} of a run's folder; csv files without speeds, the checkpoint taken apart."""
    read = {".csv": table, ".pt": metrics.load_checkpoint}
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(p.relative_to(folder)): read.get(p.suffix, Path.read_bytes)(p) for p in paths}


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """trained(script): the folder of a run of two updates, made once; leave it as it is."""
    folder = tmp_path_factory.mktemp("trained")

    def make(script):
        if not (folder / script).exists():
            train(script, pictures, folder / script)
        return folder / script

    return make


# ---- the house -----------------------------------------------------------------------------------


def test_sizes():
    for name, most in LIMITS.items():
        lines = (ROOT / name).read_text().splitlines()
        assert len(lines) <= most, f"{name} has {len(lines)} lines, its limit is {most}"
        assert max(map(len, lines)) <= 100, name
    assert (ROOT / "README.md").stat().st_size <= 15 * 1024
    assert (ROOT / "assets/RESULTS.md").stat().st_size <= 20 * 1024
    assert sum(file.stat().st_size for file in (ROOT / "assets").iterdir()) < 3e6


@every_script
def test_the_training_loop_is_readable_at_one_look(script):
    blocks = cc_visit((ROOT / f"{script}.py").read_text())
    assert [block.complexity <= 20 for block in blocks if block.name == "train"] == [True]


@pytest.mark.parametrize("name", [*SCRIPTS, "data", "metrics"])
def test_imports_keep_the_rooms_apart(name):
    """Scripts know data and six names of metrics; of packages only those that README names."""
    text = (ROOT / f"{name}.py").read_text()
    imported = set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE))
    ours = {"data": set(), "metrics": {"data"}}.get(name, {"data", "metrics"})
    packages = {"torch", "torchvision", "numpy", "scipy", "PIL"}
    assert imported - set(sys.stdlib_module_names) <= ours | packages
    used = set(re.findall(r"metrics\.(\w+)", text)) - {"py"}
    assert name == "metrics" or len(used) <= 6 + 2 * (name == "dcgan"), used  # dcgan explores too


def test_imports_do_nothing_visible(tmp_path):
    """No output, seeds, files, settings or CUDA context."""
    code = f"""
import random, numpy, torch
states = lambda: (random.getstate(), str(numpy.random.get_state()), torch.initial_seed(),
                  torch.get_rng_state().tolist(), torch.get_num_threads(), torch.is_grad_enabled())
before = states()
import {", ".join(SCRIPTS)}, data, metrics
assert states() == before and not torch.cuda.is_initialized()
assert torch.get_default_dtype() == torch.float32
"""
    command = [sys.executable, "-B", "-c", code, "--nonsense"]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


# ---- flags ---------------------------------------------------------------------------------------


def actions_of(script):
    """{dest: argparse's action} of a script."""
    stop = mock.patch.object(argparse.ArgumentParser, "parse_args", autospec=True,
                             side_effect=InterruptedError)
    with stop as parse, pytest.raises(InterruptedError):
        importlib.import_module(script).parse_args([])
    parser = parse.call_args.args[0]
    assert not parser.allow_abbrev
    return {action.dest: action for action in parser._actions if action.dest != "help"}


def test_common_flags_are_the_same_in_every_script():
    """In spelling, type, default and help, but where a default is the paper's."""
    own = {"epochs", "batch_size", "lr_g", "lr_d", "steps", "sample_every", "out", "conditional"}
    every = {script: actions_of(script) for script in SCRIPTS}
    common = set.intersection(*(set(flags) for flags in every.values()))
    names = ("dataset data_dir size out resume sample seed device epochs iters batch_size "
             "log_every sample_every compile amp graph")
    assert common >= set(names.split())
    for script, flags in every.items():
        assert ("steps" in flags) == (script in RECURRENT)
        assert ("conditional" in flags) == (script in CONDITIONAL)
        for dest, action in flags.items():
            assert action.help and len(action.help) < 200, dest
            for other in (other[dest] for other in every.values() if dest in other):
                assert action.option_strings == other.option_strings, dest
                assert action.type == other.type or dest == "read", dest  # DCRW's may be none
                if dest in common - own:
                    assert action.default == other.default, dest
                    assert action.help == other.help or dest in ("iters", "compile", "size")


@every_script
def test_every_flag_is_read(script):
    """As args.NAME or getattr(args, NAME), outside the function that makes the flags."""
    trees = [ast.parse((ROOT / f"{name}.py").read_text()) for name in (script, "data", "metrics")]
    parts = [ast.unparse(node) for tree in trees for node in tree.body
             if getattr(node, "name", "") != "parse_args"]
    read = re.findall(r"\bargs(?:\.|, ')(\w+)\b(?! = )", "\n".join(parts))
    assert set(actions_of(script)) <= set(read)


@every_script
def test_help(script, capsys):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(script).main(["--help"])
    out, err = capsys.readouterr()
    assert stop.value.code == 0 and err == "" and "[digits]" in out


@every_script
@pytest.mark.parametrize("argv", [
    "--iter 5", "--datase digits", "--nonsense", "5", "--iters", "--iters 0", "--iters 1.5",
    "--size -8", "--epochs none", "--seed x", "--batch-size 0", "--log-every 0",
    "--sample-every 0", "--sample 4", "--lr 0", "--lr nan", "--lr inf", "--lr -1", "--steps 0",
])
def test_wrong_flags_are_refused(script, argv):
    if argv.startswith("--lr ") and script not in ("dcrw", "vae"):
        argv = argv.replace("--lr", "--lr-g")
    assert argv.split()[0] in refused(script, *argv.split())


@pytest.mark.parametrize("script, more, said", [
    ("gran", "--size 30", "--size 30"), ("draw_gan", "--gamma 0", "--gamma"),
    ("draw_gan", "--warm-up -1", "--warm-up"), ("draw_gan", "--r1 -1", "--r1"),
    ("draw_gan", "--likeness ssim", "--likeness"), ("dcgan", "--size 30", "--size 30"),
    ("dcgan", "--on digits", "--explore features"), ("dcgan", "--explore walk", "--resume RUN"),
    ("dcgan", "--explore sideways", "invalid choice"), ("de_gan", "--width 8", "--width"),
    ("de_gan", "--size 48", "--size 28, 32 or 64"), ("de_gan", "--batch-size 1", "--batch-size"),
    ("vae", "--size 31 --arch conv", "--arch dense"),
])
def test_what_a_model_cannot_do_is_refused(script, more, said, pictures, tmp_path):
    assert said in refused(script, *flags(script, pictures, tmp_path / "run"), *more.split())


@pytest.mark.parametrize("script", CONDITIONAL)
def test_one_class_cannot_be_conditional(script, pictures, tmp_path):
    argv = [*flags(script, pictures / "a", tmp_path / "run"), "--data-dir", tmp_path]
    assert "--conditional" in refused(script, *argv, "--conditional")


# ---- runs ----------------------------------------------------------------------------------------


@every_script
def test_a_run_leaves_its_folder(script, pictures, tmp_path):
    """args.json, log.csv, losses.png, grids, films; a checkpoint of plain values."""
    run = tmp_path / "run"
    train(script, pictures, run, "--log-every", 3, "--sample-every", 4, iters=5)
    kept = torch.load(run / "checkpoint.pt", weights_only=True)
    assert kept["script"] == script and kept["step"] == 5 and kept["args"]["batch_size"] == 6
    assert kept["classes"] == ["a", "b"] and kept["digest"]
    assert kept["args"] == json.loads((run / "args.json").read_text())
    assert [row["step"] for row in table(run / "log.csv")] == ["1", "3", "4", "5"]
    grids = sorted(path.name for path in (run / "samples").iterdir())
    assert grids == ["000004.png", "000005.png"]
    with Image.open(run / "samples/000005.png") as picture:
        grid = torch.tensor(np.array(picture))[:, :, 0] / 255
    drawn = metrics.load_run(run).sample(64)  # 8 rows of 8, 2 pixels between them
    side = drawn.shape[3]
    assert grid.shape == (8 * (side + 2) + 2, 8 * (side + 2) + 2)
    torch.testing.assert_close(grid[2 : side + 2, -side - 2 : -2], drawn[7, 0], atol=0.003, rtol=0)
    assert (run / "losses.png").is_file() and not list(run.glob("*.part"))
    shown = script in ("draw_gan", "dcrw", "vae")
    assert (run / "reconstructions.png").is_file() == shown
    if script in RECURRENT:
        with Image.open(run / "steps.gif") as film:
            assert film.n_frames == 3
        assert (run / "steps.png").is_file()


CASES = [
    ("gran", ""), ("gran", "--tie --noise per-step --ema 0 --epochs 2 --decay 1"), ("draw_gan", ""),
    ("draw_gan", "--objective draw-gan"), ("draw_gan", "--objective draw-gan --no-attention"),
    ("dcrw", ""), ("dcrw", "--read none"), ("dcgan", "--conditional --decay 0"),
    ("dcgan", "--objective wgan"), ("dcgan", "--arch dense --conditional"), ("vae", ""),
    ("vae", "--objective dvae"), ("vae", "--objective info"),
    ("vae", "--objective aae --conditional"), ("de_gan", ""),
    ("de_gan", "--noise decoder-encoder --vae-iters 2 --conditional"),
]


@pytest.mark.parametrize("script, more", CASES)
def test_resume_is_exact(script, more, pictures, tmp_path, monkeypatch):
    """6 updates = 4 + resume + 2 = 4 + Ctrl-C + resume + 2, bit for bit: weights, log, pictures."""
    more = [*more.split(), "--log-every", "2"]
    train(script, pictures, tmp_path / "whole", *more, iters=6)
    whole = contents(tmp_path / "whole")

    train(script, pictures, tmp_path / "parts", *more, iters=4)
    with open(tmp_path / "parts/log.csv", "a") as log:
        log.write("99" + ",0.5" * 3 + "\n")  # of a run killed before its next checkpoint
    assert call(script, "--resume", tmp_path / "parts", "--iters", 6)[0] == 0
    parts = contents(tmp_path / "parts")
    last = f"samples/{whole['checkpoint.pt']['step']:06}.png"
    for file in ("checkpoint.pt", "args.json", last, "log.csv"):
        assert same(parts[file], whole[file]), file

    serve = data.batches

    def ctrl_c(*args, **options):
        for step, batch in enumerate(serve(*args, **options), 1):
            if step == (11 if "wgan" in more else 3):  # WGAN takes five batches an update
                signal.raise_signal(signal.SIGINT)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(data, "batches", ctrl_c)
        stopped = flags(script, pictures, tmp_path / "stop ped")
        status, out, err = call(script, *stopped, "--iters", 6, *more)
    assert status == 130 and not err
    said = f"resume with: python {script}.py --resume '{tmp_path / 'stop ped'}'"  # for a shell
    assert out.splitlines()[-1].endswith(said)
    stopped_at = metrics.load_checkpoint(tmp_path / "stop ped")["step"]
    assert stopped_at == (6 if "--vae-iters" in more else 4)  # the game's batches start again
    assert call(script, "--resume", tmp_path / "stop ped")[0] == 0
    stopped = contents(tmp_path / "stop ped")
    bounds = [some.pop("bound.csv", [None])[-1] for some in (whole, stopped)]
    assert bounds[0] == bounds[1]  # a stopped run has one row more, at its checkpoint
    assert [file for file in whole if not same(whole[file], stopped[file])] == []


@pytest.mark.parametrize("script", ["gran", "draw_gan", "dcrw", "dcgan", "vae"])
def test_what_may_change_on_resume_is_said(script, pictures, tmp_path):
    train(script, pictures, tmp_path / "run")
    moved = shutil.copytree(pictures, tmp_path / "moved")
    rate = "--lr" if script in ("dcrw", "vae") else "--lr-g"
    status, out, err = call(script, "--resume", tmp_path / "run", "--iters", 3, "--dataset", moved,
                            rate, 0.5, "--batch-size", 4)
    assert status == 0 and "None" not in out, (out, err)
    for text in (f"--dataset {moved} in place of {pictures}", f"{rate} 0.5", "--batch-size 4"):
        assert text in out
    assert metrics.load_checkpoint(tmp_path / "run")["args"]["batch_size"] == 4


def test_a_small_folder_trains_long_enough(pictures, tmp_path):
    """Batches of a quarter of the images at most, 3,000 updates, a first grid at update 100."""
    argv = flags("vae", pictures, tmp_path / "run")
    argv = [arg for arg in argv if arg not in ("--batch-size", 6)]
    status, _, err = call("vae", *argv, "--iters", 101, "--sample-every", 1000)
    assert status == 0, err
    args = metrics.load_checkpoint(tmp_path / "run")["args"]
    assert args["batch_size"] == args["train_images"] // 4
    assert (tmp_path / "run/samples/000100.png").is_file()
    args = argparse.Namespace(train_images=36, batch_size=9, epochs=None, iters=None)
    assert data.planned_updates(args, epochs=15) == 3000
    args.epochs = 2
    assert data.planned_updates(args, epochs=15) == 8


def test_captured_updates_are_the_plain_ones():
    """Running sums in one tensor, which zero_() starts again."""
    served = iter([torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([3.0])])
    updates = data.captured(lambda x: torch.cat([x, x * x]), served, graph=False)
    sums = next(updates)
    assert sums.tolist() == [1, 1] and next(updates) is sums and sums.tolist() == [3, 5]
    sums.zero_()
    assert next(updates).tolist() == [3, 9]


@pytest.mark.parametrize("script, more", [("gran", ""), ("draw_gan", "--objective draw-gan"),
                                          ("vae", "--objective aae")])
def test_compiled_training_is_the_same(script, more, pictures, tmp_path, monkeypatch):
    """--compile, up to the code generator; rounding apart: 1 in 1,000 weights may differ."""
    more, compile_ = [*more.split(), "--no-amp"], torch.compile
    plain = train(script, pictures, tmp_path / "plain", *more, iters=3)
    monkeypatch.setattr(torch, "compile", lambda net: compile_(net, backend="aot_eager"))
    fast = train(script, pictures, tmp_path / "fast", *more, "--compile", iters=3)
    for name, state in plain["nets"].items():
        for key, value in state.items():
            found, value = fast["nets"][name][key].float(), value.float()
            close = torch.isclose(found, value, rtol=1e-3, atol=1e-5)
            assert close.float().mean() > 0.999, (name, key)


@every_script
def test_samples_are_the_same_however_many_are_drawn(script, trained):
    """In whole batches, with latents from the CPU; recurrent models also give each step."""
    module, nets = importlib.import_module(script), metrics.load_run(trained(script)).nets

    def draw(n, seed=3, function="sample", **more):
        generator = torch.Generator().manual_seed(seed)
        return getattr(module, function)(nets, n, generator=generator, batch_size=10, **more)

    few, many = draw(6), draw(25)
    assert few.min() >= 0 and few.max() <= 1 and not torch.equal(draw(6, seed=4), few)
    torch.testing.assert_close(many[:6], few)
    assert len(many) == len(many.unique(dim=0)) == 25  # no batch is there twice
    if script in RECURRENT:
        assert torch.equal(draw(6, function="canvases")[-1], few)
        canvases = draw(25, function="canvases", steps=5)
        assert canvases.shape == (5, *many.shape) and canvases.max() <= 1
        assert torch.equal(canvases[-1], draw(25, steps=5))


@every_script
def test_a_script_copied_alone_trains_and_is_measured(script, pictures, tmp_path, monkeypatch):
    for name in (script, "data", "metrics"):
        shutil.copy(ROOT / f"{name}.py", tmp_path)
        monkeypatch.delitem(sys.modules, name, raising=False)
    elsewhere = [path for path in sys.path if Path(path).resolve() != ROOT]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *elsewhere])
    monkeypatch.chdir(tmp_path)
    assert Path(importlib.import_module(script).__file__).parent == tmp_path
    for out, seed in (("a", "0"), ("b", "1")):
        train(script, pictures, out, "--data-dir", "data", "--seed", seed)
    for out, seed in (("drawn", "0"), ("same", "0"), ("others", "7")):
        argv = ["--resume", "a", "--sample", "24", "--seed", seed, "--out", out]
        assert call(script, *argv)[0] == 0
    assert len(list(Path("drawn").rglob("*.png"))) == 24
    assert contents(Path("same")) == contents(Path("drawn")) != contents(Path("others"))
    argv = ["--features", "pixels", "--device", "cpu", "--json", "eval.json"]
    status, _, err = call("metrics", "eval", "a", "drawn", *argv, "--dataset", pictures)
    assert status == 0, err
    names = [row["name"] for row in json.loads(Path("eval.json").read_text())["rows"]]
    assert names[-2:] == ["a", "drawn"]
    status, out, err = call("metrics", "gam", "a", "b", "--n", 6, "--device", "cpu")
    if script in ("gran", "de_gan", "dcgan"):
        assert status == 0, err
    else:  # no discriminator of images, so no battle
        assert status == 2 and "discriminator" in err.splitlines()[-1]


@pytest.mark.parametrize("script", ["dcgan", "vae"])
def test_samples_lie_in_folders_of_their_classes(script, pictures, tmp_path):
    train(script, pictures, tmp_path / "run", "--conditional")
    argv = ["--resume", tmp_path / "run", "--sample", 5]
    assert call(script, *argv, "--out", tmp_path / "all")[0] == 0
    counts = {place.name: len(list(place.iterdir())) for place in (tmp_path / "all").iterdir()}
    assert counts == {"a": 3, "b": 2}
    assert call(script, *argv, "--out", tmp_path / "one", "--classes", "b")[0] == 0
    assert [place.name for place in (tmp_path / "one").iterdir()] == ["b"]
    said = refused(script, *argv, "--out", tmp_path / "none", "--classes", "cat")
    assert "cat" in said and "a, b" in said
    assert "--classes goes with --sample" in refused(script, "--classes", "a")
    train(script, pictures, tmp_path / "plain")
    argv = ["--resume", tmp_path / "plain", "--sample", 5, "--out", tmp_path / "none"]
    assert "--conditional" in refused(script, *argv, "--classes", "b")


def test_two_runs_at_once_on_one_folder_of_data_both_finish(pictures, tmp_path):
    more = ["--iters", 3, "--data-dir", tmp_path]  # no cache is there yet
    runs = []
    for name in "ab":
        argv = map(str, [*flags("vae", pictures, tmp_path / name), *more])
        command = [sys.executable, ROOT / "vae.py", *argv]
        runs.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
    assert [run.wait(120) for run in runs] == [0, 0]
    assert same(*(metrics.load_checkpoint(tmp_path / name)["nets"] for name in "ab"))
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("end", ["closed", "full", "SIGTERM"])
def test_a_training_survives_its_terminal_and_saves_on_sigterm(end, pictures, tmp_path):
    argv = [str(arg) for arg in flags("vae", pictures, tmp_path / "run")]
    command = [sys.executable, ROOT / "vae.py", *argv, "--log-every", "1"]
    command += ["--iters", "1000000" if end == "SIGTERM" else "200"]
    with open("/dev/full", "w") as full:
        run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True,
                               stdout=full if end == "full" else subprocess.PIPE)
        if end == "closed":
            run.stdout.readline()
            run.stdout.close()
        elif end == "SIGTERM":
            while "step" not in run.stdout.readline():
                pass
            run.send_signal(signal.SIGTERM)
            assert "resume with" in run.stdout.read().splitlines()[-1]
        err = run.stderr.read()
        assert run.wait(120) == (130 if end == "SIGTERM" else 0), err
    step = metrics.load_checkpoint(tmp_path / "run")["step"]
    assert step >= 1 if end == "SIGTERM" else step == 200
    assert "Traceback" not in err


# ---- bad input -----------------------------------------------------------------------------------


@every_script
def test_bad_input_is_one_line(script, pictures, trained, tmp_path):
    run, other = trained(script), trained("vae" if script == "gran" else "gran")
    before, new = contents(run), tmp_path / "new"
    common = flags(script, pictures, new)
    assert "nothing-such" in refused(script, "--dataset", "nothing-such", "--out", new)
    assert "37" in refused(script, *common, "--batch-size", 37)
    for device in ("nonsense", "cpu:x", "meta", "cuda:99"):
        assert f"device {device} " in refused(script, *common, "--device", device)
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/below"):
        assert "--out" in refused(script, *common, "--out", tmp_path / out)
    assert (tmp_path / "file").read_text() == "mine"

    assert f"--resume {run}" in refused(script, *common, "--out", run)
    assert "2 updates" in refused(script, "--resume", run)
    assert "--size" in refused(script, "--resume", run, "--iters", 4, "--size", 32)
    assert "--out" in refused(script, "--resume", run, "--iters", 4, "--out", new)
    assert "not empty" in refused(script, "--resume", run, "--sample", 4, "--out", run)
    for path, why in (pictures, "is not a run"), (tmp_path / "nowhere", "does not exist"):
        assert f"{path} {why}" in refused(script, "--resume", path)
        assert f"{path} {why}" in refused(script, "--resume", path, "--sample", 4)
    assert f"is a run of {other.name}.py" in refused(script, "--resume", other, "--iters", 4)
    assert same(contents(run), before)


def test_a_failed_start_leaves_no_folder(tmp_path):
    argv = ["--dataset", "nothing-such", "--out", tmp_path / "new"]
    done = subprocess.run([sys.executable, ROOT / "gran.py", *argv], check=False)
    assert done.returncode == 2 and not (tmp_path / "new").exists()


@every_script
def test_a_folder_that_another_process_trains_in_is_left_alone(script, pictures, tmp_path):
    """Also before its first checkpoint."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.csv").write_text("the other's")
    lock = os.open(run, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert "another process" in refused(script, *flags(script, pictures, run), "--iters", 1)
    os.close(lock)
    assert [path.name for path in run.iterdir()] == ["log.csv"]
    assert (run / "log.csv").read_text() == "the other's"


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@every_script
def test_damaged_and_hostile_checkpoints_are_refused(script, trained, tmp_path):
    good = torch.load(trained(script) / "checkpoint.pt", weights_only=True)
    whole = (trained(script) / "checkpoint.pt").read_bytes()
    flipped, parts = bytearray(whole), zipfile.ZipFile(trained(script) / "checkpoint.pt").infolist()
    weights = max(parts, key=lambda part: part.file_size)
    flipped[weights.header_offset + weights.file_size // 2] ^= 1
    trap = Trap(tmp_path / "sprung")

    bad = [
        b"", b"PK no zip", whole[: len(whole) // 2], bytes(flipped), good["nets"], [1, 2], trap,
        good | {"args": {}}, good | {"args": [1]}, good | {"nets": {}}, good | {"nets": None},
        good | {"nets": {name: {} for name in good["nets"]}}, good | {"script": 5},
        good | {"nets": {name: [] for name in good["nets"]}}, good | {"step": "5"},
        good | {"script": "../../etc/passwd"},
    ]
    values = {"size": ["8", 10**12, -8, None, trap], "channels": [[1], 10**9],
              "batch_size": ["6", 10**15, -1]}
    bad += [good | {"args": good["args"] | {key: value}}
            for key in values for value in values[key]]
    for n, content in enumerate(bad):
        run = tmp_path / str(n)
        run.mkdir()
        if isinstance(content, bytes):
            (run / "checkpoint.pt").write_bytes(content)
        else:
            torch.save(content, run / "checkpoint.pt")
        before = (run / "checkpoint.pt").read_bytes()
        for argv in (["--iters", 4], ["--sample", 4]):
            refused(script, "--resume", run, *argv)
        assert [path.name for path in run.iterdir()] == ["checkpoint.pt"]
        assert (run / "checkpoint.pt").read_bytes() == before
    assert not (tmp_path / "sprung").exists()
    for part in ({"optimisers": {}}, {"rng": {}}, {"rng": {"cpu": torch.zeros(3)}}, {"rng": None}):
        torch.save(good | part, tmp_path / "0/checkpoint.pt")
        assert str(tmp_path / "0") in refused(script, "--resume", tmp_path / "0", "--iters", 4)


def test_the_trap_above_springs_where_code_is_let_run(tmp_path):
    torch.save(Trap(tmp_path / "sprung"), tmp_path / "code.pt")
    torch.load(tmp_path / "code.pt", weights_only=False).close()
    assert (tmp_path / "sprung").exists()


@every_script
def test_other_images_than_the_runs_are_refused(script, trained, tmp_path):
    """The data set that a run is resumed on holds colour images."""
    run = shutil.copytree(trained(script), tmp_path / "run")
    before, colour = contents(run), noise(tmp_path / "set", 3)
    argv = ["--resume", run, "--iters", 4, "--dataset", colour, "--data-dir", tmp_path]
    assert "channels" in refused(script, *argv)
    assert same(contents(run), before)


@every_script
def test_a_full_disk_keeps_the_last_checkpoint(script, trained, tmp_path):
    """Files may only grow to a part of the checkpoint: a write fails half-way."""
    run = shutil.copytree(trained(script), tmp_path / "run")
    checkpoint, log = (run / "checkpoint.pt").read_bytes(), table(run / "log.csv")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(0.6 * len(checkpoint)), limits[1]))
    try:
        said = refused(script, "--resume", run, "--iters", 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in said and f"{run} keeps its last checkpoint" in said
    assert (run / "checkpoint.pt").read_bytes() == checkpoint
    assert not list(run.glob("checkpoint.pt.*")) and table(run / "log.csv")[: len(log)] == log
    assert call(script, "--resume", run, "--iters", 4)[0] == 0  # with room again, it continues


@every_script
@pytest.mark.parametrize("first, said", [(2, "loss is not finite at update 5"),
                                         (3, "weight is not finite at update 5")])
def test_what_turns_nan_stops_the_run(script, first, said, trained, tmp_path):
    """Weights before update 5, so that its losses are NaN, or only in the last step of it."""
    run, steps = shutil.copytree(trained(script), tmp_path / "run"), {}

    def poison(optimiser, *rest):
        steps[optimiser] = steps.get(optimiser, 0) + 1
        if steps[optimiser] >= first and optimiser is list(steps)[-1]:
            for p in optimiser.param_groups[0]["params"]:
                p.data.fill_(float("nan"))

    handle = register_optimizer_step_post_hook(poison)
    try:
        error = refused(script, "--resume", run, "--iters", 5)
    finally:
        handle.remove()
    assert said in error and "lower rates" in error
    assert metrics.load_checkpoint(run)["step"] == 2


# ---- kills ---------------------------------------------------------------------------------------

KILLER = """
import contextlib, os, random, signal, sys, time
from pathlib import Path
import torch
import metrics, SCRIPT
torch.set_num_threads(1)  # one thread: processes forked from this one are sound
torch.optim.Adam([torch.zeros(1)])  # the first one imports much: here, and not in every child
flags, out, kills = sys.argv[1:-2], Path(sys.argv[-2]), int(sys.argv[-1])
chance, step = random.Random(0), 0

def start(iters):
    resumed = (out / "checkpoint.pt").exists()
    argv = ["--resume", str(out)] if resumed else [*flags, "--out", str(out)]
    child = os.fork()
    if child:
        return child
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    status = 1
    try:
        SCRIPT.main([*argv, "--iters", str(iters)])
        status = 0
    finally:
        os._exit(status)

for n in range(kills):
    child, seen, more, patience = start(2900), set(), chance.randrange(4), time.monotonic() + 60
    while n % 4 and len(seen) <= more and time.monotonic() < patience:
        with contextlib.suppress(FileNotFoundError):
            seen.add((out / "checkpoint.pt").stat().st_mtime_ns)
        time.sleep(0.001)
    time.sleep(chance.random() * 0.1)  # one in four dies as it starts
    assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended by itself"
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    if (out / "checkpoint.pt").exists():
        before, step = step, metrics.load_run(out).step  # whole, and loads as a run
        assert step >= before
    else:
        assert step == 0
for folder in (out, out.with_name("whole")):
    out = folder
    assert os.waitpid(start(step + 5), 0)[1] == 0
"""


@pytest.mark.parametrize("script", ["gran", "vae"])
def test_a_run_killed_at_twenty_random_moments_ends_as_an_unbroken_one(script, pictures, tmp_path):
    argv = [*flags(script, pictures, "-"), "--sample-every", 1, tmp_path / "broken", 20]
    command = [sys.executable, "-c", KILLER.replace("SCRIPT", script), *argv]
    done = subprocess.run(list(map(str, command)), check=False, cwd=ROOT, capture_output=True,
                          text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    whole, broken = (contents(tmp_path / name) for name in ("whole", "broken"))
    assert [file for file in whole if not same(whole[file], broken.get(file))] == []
