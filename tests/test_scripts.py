"""What all the scripts promise alike: flags, run folders, exact resume, compilation, bad input, kills; the longest file of the tests."""

import ast
import builtins
import contextlib
import csv
import importlib
import io
import json
import re
import resource
import shutil
import signal
import struct
import subprocess
import symtable
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import data
import metrics

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ["gran", "draw_gan", "dcrw", "de_gan", "dcgan", "vae"]
RECURRENT = ["gran", "draw_gan", "dcrw"]
CONDITIONAL = ["de_gan", "dcgan", "vae"]
SMALL = {  # flags of a run that is quick
    "gran": ["--size", "8", "--steps", "3"],
    "draw_gan": ["--size", "8", "--steps", "3", "--hidden", "16", "--z-dim", "4", "--write", "3"],
    "dcrw": ["--size", "8", "--steps", "3", "--read", "3", "--write", "3", "--z-dim", "3"],
    "de_gan": ["--noise", "plain", "--z-dim", "64"],
    "dcgan": ["--width", "4"],
    "vae": ["--size", "8", "--hidden", "16", "--z-dim", "3"],
}

every_script = pytest.mark.parametrize("script", SCRIPTS)


@pytest.mark.parametrize("script", ["gran", "dcgan", "de_gan"])
@pytest.mark.parametrize("kind, other, shape, more", [("ToImage", nn.ConvTranspose2d, (2, 6, 7, 7), {"output_padding": 1}),
                                                      ("FromImage", nn.Conv2d, (2, 3, 14, 14), {})])
def test_convolutions_in_blocks_are_torchs_forward_and_backward(script, kind, other, shape, more):
    torch.manual_seed(0)
    channels = (6, 3) if kind == "ToImage" else (3, 6)
    theirs = other(*channels, kernel_size=5, stride=2, padding=2, **more).double()
    ours = getattr(importlib.import_module(script), kind)(*channels, kernel_size=5, stride=2, padding=2, **more).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    found = []
    for layer in (ours, theirs):
        x_in = x.clone().requires_grad_()
        y = layer(x_in)
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape))
        found.append((y, x_in.grad, layer.weight.grad, layer.bias.grad))
    for one, two in zip(*found):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of forty noisy grey pictures of 28 px, in two classes."""
    folder, rng = tmp_path_factory.mktemp("data") / "noise", np.random.default_rng(0)
    for i in range(40):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(folder / "ab"[i % 2] / f"{i}.png")
    return folder


def call(script, *argv):
    """main(argv) in this process -> (exit status, stdout, stderr)."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            importlib.import_module(script).main([str(arg) for arg in argv])
        except SystemExit as stop:
            status = stop.code or 0
    return status, out.getvalue(), err.getvalue()


def train(script, pictures, out, *more, iters=2):
    """A small run, which must end well -> its checkpoint."""
    common = ["--dataset", pictures, "--data-dir", pictures.parent, "--out", out, "--device", "cpu", "--batch-size", 6]
    status, _, err = call(script, *common, "--iters", iters, *SMALL[script], *more)
    assert status == 0, err
    return metrics.load_checkpoint(out, script)


def refused(script, *argv):
    """What a call says that must end with status 2 and one line on stderr."""
    status, _, err = call(script, *argv)
    lines = [line for line in err.splitlines() if not line.startswith(("warning:", "note:"))]
    assert status == 2 and len(lines) == 1 and lines[0].startswith(f"{script}.py: error: "), (status, err)
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
        return [{name: value for name, value in row.items() if name != "images_per_s"} for row in csv.DictReader(file)]


def contents(folder):
    """{file: content} of a run's folder; csv files without speeds, the checkpoint taken apart."""
    read = {".csv": table, ".pt": metrics.load_checkpoint}
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): read.get(path.suffix, Path.read_bytes)(path) for path in paths}


# Source -------------------------------------------------------------------------------------------------------------


def tree_of(name):
    return ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", [*SCRIPTS, "data", "metrics"])
def test_imports_keep_the_rooms_apart(name):
    """Scripts know data and metrics alone; of packages only those that README names."""
    imported = set()
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.split(".")[0])
    ours = {"data": set(), "metrics": {"data"}}.get(name, {"data", "metrics"})
    assert imported - set(sys.stdlib_module_names) <= ours | {"torch", "torchvision", "numpy", "scipy", "PIL"}


def test_readmes_parts_need_what_it_says():
    """Each row of its table of parts to copy: the names that its functions and classes use and do not bring themselves."""
    table = (ROOT / "README.md").read_text().split("| you want | take | it needs |")[1].split("\n\n")[0]
    attention, rows = [], re.findall(r"^\|[^|]*\| `(\w+)\.py`: (.*) \| (.*) \|$", table, re.MULTILINE)
    assert len(rows) == 8
    for script, take, needs in rows:
        names = {*re.findall(r"`(\w+)`", take), *(attention if take.startswith(("these", "the same four")) else [])}
        attention = attention or (names if "filterbank" in names else [])
        source = (ROOT / f"{script}.py").read_text()
        nodes = [node for node in ast.parse(source).body if getattr(node, "name", None) in names]
        assert {node.name for node in nodes} == names
        tables = [symtable.symtable(ast.unparse(node), script, "exec") for node in nodes]
        used = set()
        for scope in tables:  # and the scopes within, as they are found
            tables += scope.get_children()
            outer = scope.get_type() == "module"
            used |= {name.get_name() for name in scope.get_symbols()
                     if name.is_global() or (outer and name.is_referenced() and not name.is_assigned())}
        assert used - names - set(dir(builtins)) == set(re.findall(r"`(\w+)`", needs)), take


def test_imports_do_nothing_visible(tmp_path):
    """No output, warnings, seeds, files, parsing or CUDA context; in a folder of their own, with data and metrics alone."""
    for name in (*SCRIPTS, "data", "metrics"):
        shutil.copy(ROOT / f"{name}.py", tmp_path)
    code = f"""
import random, numpy, torch
states = lambda: (random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist(), torch.initial_seed())
before = states()
import {", ".join(SCRIPTS)}, data, metrics
assert states() == before and not torch.cuda.is_initialized() and torch.is_grad_enabled()
assert torch.get_default_dtype() == torch.float32
"""
    files = sorted(tmp_path.iterdir())
    command = [sys.executable, "-B", "-c", code, "--nonsense"]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(tmp_path.iterdir()) == files


# Flags --------------------------------------------------------------------------------------------------------------


def flags_of(script, monkeypatch):
    """{flag: argparse's action} of a script."""
    parsers = []

    def stop(parser, *rest):
        parsers.append(parser)
        raise InterruptedError

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(metrics.Parser, "parse_args", stop)
        importlib.import_module(script).parse_args([])
    (parser,) = parsers
    assert not parser.allow_abbrev
    return {action.option_strings[-1]: action for action in parser._actions if action.dest != "help"}


@every_script
def test_common_flags_mean_the_same(script, monkeypatch):
    """In name, type and default, and where it can be in every word of the help."""
    flags = flags_of(script, monkeypatch)
    asked = {  # type, default, help; None: the script's own
        "--dataset": (str, "digits", f"{', '.join(data.DATASETS)}, or a folder of images"),
        "--data-dir": (str, "data", "where data sets lie, and are downloaded to"),
        "--size": (metrics.count, None, "side of the images in pixels; the data set's own if not given"),
        "--out": (str, None, "the run's folder; runs/.* if not given"),
        "--resume": (str, None, "go on with this run"),
        "--sample": (metrics.count, None, "only draw N images of the run given by --resume, into --out"),
        "--seed": (metrics.seed, 0, "of weights, batches and latents"),
        "--device": (str, "cuda" if torch.cuda.is_available() else "cpu", "cpu, cuda, cuda:1, ..."),
        "--epochs": (metrics.count, ..., "times through the data.*"),
        "--iters": (metrics.count, None, "stop after this many updates(, .*)?; takes the place of --epochs"),
        "--batch-size": (metrics.count, ..., ".*"),
        "--log-every": (metrics.count, 50, "updates between two printed lines"),
        "--sample-every": (metrics.count, ..., "updates between two grids, each with .*checkpoint"),
        "--compile": (None, False, "torch.compile .*"),
        "--amp": (None, None, "bfloat16 autocast; where the device is fast at it if not given"),
    }
    rates = {"vae": {"--lr"}, "dcrw": {"--lr"}}.get(script, {"--lr-g", "--lr-d"})
    asked |= {rate: (metrics.rate, ..., "(Adam's )?rate.*") for rate in rates}
    if script in CONDITIONAL:
        asked["--conditional"] = (None, False, ".* labels?(, .*)?")
    if script in RECURRENT:
        asked["--steps"] = (metrics.count, ..., "T, the drawing steps; .*")
    for name, (kind, default, text) in asked.items():
        flag = flags.pop(name) if kind else flags.pop(f"--no-{name[2:]}")
        assert flag.dest == name[2:].replace("-", "_") and (flag.type or str) == (kind or str), name
        assert default is ... or flag.default == default, name
        assert re.fullmatch(text, flag.help) or text == flag.help, name
        assert (flag.nargs == 0) == (kind is None), name
    assert not {"--lr", "--lr-g", "--lr-d", "--conditional", "--steps"} & flags.keys()


@every_script
def test_every_flag_is_read(script, monkeypatch):
    """As args.NAME, outside the function that makes the flags."""
    functions = [node for node in tree_of(script).body if getattr(node, "name", None) != "parse_args"]
    read = {node.attr for function in functions for node in ast.walk(function)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and getattr(node.value, "id", "") == "args"}
    read |= {"resume", "out"} & {node.attr for node in ast.walk(tree_of("metrics")) if isinstance(node, ast.Attribute)}
    assert {flag.dest for flag in flags_of(script, monkeypatch).values()} <= read


@every_script
def test_help_shows_the_defaults(script, monkeypatch, capsys):
    """The formatter's defaults, none typed, and those typed for want of a fixed one are true."""
    main, flags = importlib.import_module(script), flags_of(script, monkeypatch)
    with pytest.raises(SystemExit) as stop:
        main.main(["--help"])
    out, err = capsys.readouterr()
    assert stop.value.code == 0 and err == ""
    shown = " ".join(out.split())
    for name, flag in flags.items():
        assert flag.help and "(default" not in flag.help, name
        assert flag.default is None or f"(default: {flag.default})" in shown, name
        computed = getattr(main.parse_args(["--dataset", "mnist"]), flag.dest)
        if flag.default is None and computed is not None and (flag.dest != "lr_d" or script != "dcgan") and name != "--size":
            numbers = [float(number) for number in re.findall(r"\d+(?:e-?\d+)?", flag.help)]
            assert computed in numbers and "if not given" in flag.help, name
            for dataset in ("digits", "cifar10"):
                assert getattr(main.parse_args(["--dataset", dataset]), flag.dest) in numbers, name


@every_script
@pytest.mark.parametrize("argv", [
    "--iter 5", "--datase digits", "--nonsense", "5", "--iters", "--iters 0", "--iters 1.5", "--size -8", "--epochs none", "--seed x",
    "--batch-size 0", "--log-every 0", "--sample-every 0", "--seed 99999999999999999999", "--sample 4", "--amp=yes",
])  # fmt: skip
def test_wrong_flags_are_refused(script, argv):
    assert argv.split()[0].split("=")[0] in refused(script, *argv.split())


@pytest.mark.parametrize("script, argv", [(script, "--steps 0") for script in RECURRENT]
    + [(script, "--batch-size 1") for script in ("gran", "de_gan", "dcgan")]
    + [(script, f"--lr {rate}") for script in ("dcrw", "vae") for rate in ("0", "nan", "inf", "-1", "fast")]
    + [(script, f"--lr-{net} {rate}") for script in ("gran", "draw_gan", "de_gan", "dcgan") for net in "gd" for rate in (0, "nan")]
)  # fmt: skip
def test_numbers_that_do_not_serve_are_refused(script, argv):
    assert argv.split()[0] in refused(script, *argv.split())


# Runs ---------------------------------------------------------------------------------------------------------------


@every_script
def test_a_run_leaves_its_folder(script, pictures, tmp_path):
    """args.json, log.csv, a grid every --sample-every updates, for recurrent models a film; a checkpoint of plain values."""
    run = tmp_path / "run"
    train(script, pictures, run, "--log-every", "2", "--sample-every", "3", iters=5)
    kept = torch.load(run / "checkpoint.pt", weights_only=True)
    assert kept["script"] == script and kept["step"] == 5 and kept["args"]["batch_size"] == 6
    assert kept["args"] == json.loads((run / "args.json").read_text())
    assert [int(row["step"]) for row in table(run / "log.csv")] == [2, 3, 4, 5]
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["000003.png", "000005.png"]
    side = 8 if "--size" in SMALL[script] else 28
    with Image.open(run / "samples/000005.png") as grid:
        assert grid.height == 8 * (side + 2) + 2 + 16 * (script == "vae")  # 8 rows, 2 pixels between; VAE's has a title
    assert not list(run.glob("*.part"))
    if script in RECURRENT:
        with Image.open(run / "steps.gif") as film:
            assert film.n_frames == 3
        with Image.open(run / "steps.png") as strip:
            assert strip.width in (3 * (side + 2) + 2, 3 * (3 * side + 2))  # a column per step; DRAW's are threefold


CASES = [
    ("gran", ""), ("gran", "--tie --noise per-step"), ("draw_gan", ""), ("draw_gan", "--objective draw-gan"),
    ("draw_gan", "--objective draw-gan --no-attention --likeness pixel"), ("dcrw", ""), ("dcrw", "--read none"),
    ("dcgan", "--conditional"), ("dcgan", "--objective wgan"), ("dcgan", "--arch dense --conditional"),
    ("vae", ""), ("vae", "--objective dvae"), ("vae", "--objective info"), ("vae", "--objective aae --conditional"),
    ("de_gan", ""),
]  # fmt: skip


@pytest.mark.parametrize("script, more", CASES)
def test_resume_is_exact(script, more, pictures, tmp_path, monkeypatch):
    """6 updates = 4 + resume + 2 = 4 + Ctrl-C + resume + 2, bit for bit: weights, optimisers, log, pictures."""
    more = [*more.split(), "--log-every", "2"]
    train(script, pictures, tmp_path / "whole", *more, iters=6)
    whole = contents(tmp_path / "whole")

    train(script, pictures, tmp_path / "parts", *more, iters=4)
    with open(tmp_path / "parts/log.csv", "a") as log:
        log.write("5,of,a,run,killed,before,its,checkpoint\n")
    assert call(script, "--resume", tmp_path / "parts", "--iters", 6)[0] == 0
    parts = contents(tmp_path / "parts")
    assert parts["log.csv"].pop(1)["step"] == "4"  # as the row of an end it may tell more
    assert [row["step"] for row in parts["log.csv"]] == ["2", "6"] and parts["log.csv"][1] == whole["log.csv"][2]
    for file in ("checkpoint.pt", "args.json", "samples/000006.png"):
        assert same(parts[file], whole[file]), file

    serve = data.batches

    def ctrl_c(*args, **options):
        for step, batch in enumerate(serve(*args, **options), 1):
            if step == (16 if "wgan" in more else 4):  # WGAN takes five batches an update
                signal.raise_signal(signal.SIGINT)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(data, "batches", ctrl_c)
        common = ["--dataset", pictures, "--data-dir", pictures.parent, "--out", tmp_path / "stopped", "--device", "cpu"]
        status, out, err = call(script, *common, "--batch-size", 6, "--iters", 6, *SMALL[script], *more)
    assert status == 130 and err.count("\n") == err.count("warning:")
    said = f"go on with: python {script}.py --resume {tmp_path / 'stopped'}"
    assert out.splitlines()[-1].endswith(said) and metrics.load_checkpoint(tmp_path / "stopped")["step"] == 4
    assert call(script, "--resume", tmp_path / "stopped")[0] == 0  # just what it said

    stopped = contents(tmp_path / "stopped")
    assert stopped.keys() == whole.keys()
    assert not [file for file in whole if not same(whole[file], stopped[file])]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_that_is_stopped_as_it_ends_is_whole(script, pictures, tmp_path, monkeypatch):
    """A Ctrl-C in the last update comes too late; a run killed once its last checkpoint stands lacks nothing."""
    more = ["--z-dim", "2"] if script == "vae" else []  # it has maps of its plane then
    train(script, pictures, tmp_path / "whole", *more)
    whole, serve, save = contents(tmp_path / "whole"), data.batches, metrics.save_run

    def ctrl_c(*args, **options):
        for step, batch in enumerate(serve(*args, **options), 1):
            if step == 2:
                signal.raise_signal(signal.SIGINT)
            yield batch

    def killed(folder, name, args, step, *parts):
        save(folder, name, args, step, *parts)
        if step == 2:
            raise OSError("killed")

    for name, place, instead in (("stopped", (data, "batches"), ctrl_c), ("killed", (metrics, "save_run"), killed)):
        with monkeypatch.context() as patch:
            patch.setattr(*place, instead)
            common = ["--dataset", pictures, "--data-dir", pictures.parent, "--out", tmp_path / name, "--device", "cpu"]
            status, _, err = call(script, *common, "--batch-size", 6, "--iters", 2, *SMALL[script], *more)
        assert (status, "killed" in err) == ((2, True) if name == "killed" else (0, False)), err
        ended = contents(tmp_path / name)
        assert ended.keys() == whole.keys() and not [file for file in whole if not same(whole[file], ended[file])]


@pytest.mark.parametrize("script, more", [("gran", ""), ("draw_gan", "--objective draw-gan"), ("dcrw", ""), ("dcgan", ""),
                                          ("dcgan", "--objective wgan"), ("vae", "--objective aae"),
                                          ("de_gan", "--noise decoder-encoder --vae-iters 1")])
def test_compiled_training_is_the_same_and_pictures_are_drawn_by_the_plain_nets(script, more, pictures, tmp_path, monkeypatch):
    """--compile up to the code generator: traced forwards and backwards, one mark an update, samples without a graph.

    Rounding apart, since Adam's first steps are as long where a gradient is nearly nought: 1 in 1,000 weights may differ.
    """
    more = [*more.split(), "--no-amp"]
    plain = train(script, pictures, tmp_path / "plain", *more, iters=3)
    compile_, draw, seen = torch.compile, importlib.import_module(script).sample, {"compiled": 0, "marks": 0, "samples": 0}

    def count(name):
        seen[name] += 1

    def traced(net, mode):
        count("compiled")
        return compile_(net, backend="aot_eager")

    def sample(nets, *args, **options):
        count("samples")
        assert not [part for net in nets.values() for part in net.modules() if isinstance(part, torch._dynamo.OptimizedModule)]
        return draw(nets, *args, **options)

    monkeypatch.setattr(torch, "compile", traced)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: count("marks"))
    monkeypatch.setattr(importlib.import_module(script), "sample", sample)
    fast = train(script, pictures, tmp_path / "fast", *more, "--compile", iters=3)
    assert seen == {"compiled": len(plain["nets"]), "marks": 3, "samples": seen["samples"]}
    assert script in ("gran", "dcrw") or seen["samples"]  # these two draw through `canvases`
    for name, state in plain["nets"].items():
        for key, value in state.items():
            far = ~torch.isclose(fast["nets"][name][key].float(), value.float(), rtol=1e-3, atol=1e-5)
            assert far.float().mean() <= 1e-3, (name, key)


@every_script
def test_a_script_copied_alone_trains_draws_and_is_measured(script, pictures, tmp_path, monkeypatch):
    for name in (script, "data", "metrics"):
        shutil.copy(ROOT / f"{name}.py", tmp_path)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(path for path in sys.path if Path(path).resolve() != ROOT)])
    monkeypatch.chdir(tmp_path)
    assert Path(importlib.import_module(script).__file__).parent == tmp_path
    for out, seed in (("a", "0"), ("b", "1")):
        train(script, pictures, out, "--data-dir", "data", "--seed", seed)
    assert call(script, "--resume", "a", "--sample", "4", "--out", "drawn")[0] == 0
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 4
    for out, seed in (("same", "0"), ("others", "7")):  # another seed, other samples
        assert call(script, "--resume", "a", "--sample", "4", "--seed", seed, "--out", out)[0] == 0
        assert (contents(tmp_path / out) == contents(tmp_path / "drawn")) == (out == "same")
    measures = ["--features", "pixels", "--k", 1, "--device", "cpu", "--json", "eval.json"]
    status, _, err = call("metrics", "eval", "a", "drawn", *measures, "--dataset", pictures)
    assert status == 0, err
    assert [row["name"] for row in json.loads(Path("eval.json").read_text())["rows"]] == ["real test images", "a", "drawn"]
    status, out, err = call("metrics", "gam", "a", "b", "--n", 6, "--device", "cpu")
    if script in ("gran", "de_gan", "dcgan"):
        assert status == 0 and re.search(r"wins: .*\ba \d", out)
    else:  # no discriminator of images, so no battle
        assert status == 2 and "has a discriminator" in err.splitlines()[-1]


def test_two_runs_at_once_on_one_folder_of_data_both_finish(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "noise")  # no cache is there yet
    flags = ["--dataset", tmp_path / "noise", "--data-dir", tmp_path, "--device", "cpu", "--batch-size", "6", "--iters", "3"]
    code = f"""
import os, sys, torch, vae
torch.set_num_threads(1)  # so that a fork is sound
child = os.fork()
vae.main([*sys.argv[1:], "--out", {str(tmp_path)!r} + ("/a" if child else "/b")])
assert not child or os.waitpid(child, 0)[1] == 0
"""
    command = [sys.executable, "-c", code, *flags, *SMALL["vae"]]
    done = subprocess.run(list(map(str, command)), check=False, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    a, b = (contents(tmp_path / name) for name in "ab")
    assert same(a, b) and (tmp_path / "noise-8.cache.npy").is_file() and not list(tmp_path.glob("*.part"))


# Bad input ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """trained(script): the folder of a run of two updates, made once; leave it as it is."""
    folder = tmp_path_factory.mktemp("trained")

    def make(script):
        if not (folder / script).exists():
            train(script, pictures, folder / script)
        return folder / script

    return make


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@every_script
def test_bad_input_is_one_line(script, pictures, trained, tmp_path):
    run, other = trained(script), trained("vae" if script == "gran" else "gran")
    before = contents(run)
    common = ["--dataset", pictures, "--data-dir", pictures.parent, "--device", "cpu", "--batch-size", 6, *SMALL[script]]
    new = tmp_path / "new"

    assert "nothing-such" in refused(script, "--dataset", "nothing-such", "--out", new)
    assert "batch size 37 does not fit 36 images" in refused(script, *common, "--batch-size", 37, "--out", new)
    for device in ("nonsense", "cpu:x", "meta", "cuda:99"):
        assert f"device {device} " in refused(script, *common, "--device", device, "--out", new)
        assert f"device {device} " in refused(script, "--resume", run, "--sample", 4, "--device", device, "--out", new)
    assert not new.exists()  # nothing is left of any of them
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/below"):
        assert "--out" in refused(script, *common, "--out", tmp_path / out)
    assert (tmp_path / "file").read_text() == "mine"

    assert f"--resume {run}" in refused(script, *common, "--out", run)
    assert "2 of 2 updates" in refused(script, "--resume", run)
    assert "--batch-size is 6" in refused(script, "--resume", run, "--iters", 4, "--batch-size", 7)
    assert "--out" in refused(script, "--resume", run, "--iters", 4, "--out", new)
    assert "not its file" in refused(script, "--resume", run / "checkpoint.pt", "--iters", 4)
    assert "not empty" in refused(script, "--resume", run, "--sample", 4, "--out", run)
    for path in (pictures, tmp_path / "nowhere"):
        assert f"{path} is not a run" in refused(script, "--resume", path)
        assert f"{path} is not a run" in refused(script, "--resume", path, "--sample", 4)
    assert "was written by" in refused(script, "--resume", other, "--iters", 4)
    assert same(contents(run), before)


@every_script
def test_a_folder_that_another_run_writes_is_left_alone(script, pictures, tmp_path):
    """Another process, before its first checkpoint."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("log.csv", "args.json"):
        (run / name).write_text("the other's")
    hold = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    common = ["--dataset", pictures, "--data-dir", pictures.parent, "--out", run, "--device", "cpu", "--batch-size", 6]
    with subprocess.Popen([sys.executable, "-c", hold, run / "log.csv"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        assert "written by another run" in refused(script, *common, "--iters", 1, *SMALL[script])
        other.communicate(b"\n")
    assert {path.name for path in run.iterdir()} <= {"log.csv", "args.json", "samples", "reconstructions"}
    assert all((run / name).read_text() == "the other's" for name in ("log.csv", "args.json"))
    train(script, pictures, run, iters=1)


def test_battles_of_runs_of_one_name_and_of_other_images(trained, pictures, tmp_path, monkeypatch):
    """Runs are told apart by their folders; images of another shape are no opponents."""
    monkeypatch.chdir(tmp_path)
    for place in "ab":
        shutil.copytree(trained("gran"), Path(place, "run"))
    status, out, _ = call("metrics", "gam", "a/run", "b/run", "--n", 6, "--device", "cpu", "--data-dir", pictures.parent, "--json", "gam.json")
    assert status == 0 and json.loads(Path("gam.json").read_text())["wins"].keys() == {"a/run", "b/run"} and "a/run vs. b/run" in out
    for argv, said in ((["--size", 16], "the test images are (1, 16, 16)"), (["--tolerance", "nan"], "tolerance"),
                       (["--tolerance", "-1"], "tolerance"), (["--json", "a"], "it is a folder")):  # fmt: skip
        status, _, err = call("metrics", "gam", "a/run", "b/run", "--n", 6, "--device", "cpu", "--data-dir", pictures.parent, *argv)
        assert status == 2 and said in err.splitlines()[-1]


def test_eval_by_a_classifier_where_there_are_no_classes(trained, pictures, tmp_path):
    for path in pictures.rglob("*.png"):
        (tmp_path / "flat").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "flat")
    status, _, err = call("metrics", "eval", trained("vae"), "--dataset", tmp_path / "flat", "--data-dir", tmp_path, "--size", 8,
                          "--features", "classifier", "--k", 1, "--device", "cpu")  # fmt: skip
    assert status == 2 and "use --features pixels" in err.splitlines()[-1]


@every_script
def test_checkpoints_of_others_are_refused(script, trained, tmp_path):
    good = torch.load(trained(script) / "checkpoint.pt", weights_only=True)
    whole = (trained(script) / "checkpoint.pt").read_bytes()
    trap = Trap(tmp_path / "sprung")
    bad = [
        b"", b"PK no zip", whole[: len(whole) // 2], good["nets"], [1, 2], trap, {**good, "args": {**good["args"], "size": trap}},
        {**good, "args": {}}, {**good, "nets": {}}, {**good, "nets": {name: {} for name in good["nets"]}},
    ]  # fmt: skip
    for n, content in enumerate(bad):
        run = tmp_path / str(n)
        run.mkdir()
        if isinstance(content, bytes):
            (run / "checkpoint.pt").write_bytes(content)
        else:
            torch.save(content, run / "checkpoint.pt")
        before = (run / "checkpoint.pt").read_bytes()
        for argv in (["--iters", 4], ["--sample", 4]):
            assert str(run) in refused(script, "--resume", run, *argv)
        assert [path.name for path in run.iterdir()] == ["checkpoint.pt"] and (run / "checkpoint.pt").read_bytes() == before
    assert not (tmp_path / "sprung").exists()
    torch.save({**good, "optimisers": {}}, tmp_path / "0/checkpoint.pt")
    assert str(tmp_path / "0") in refused(script, "--resume", tmp_path / "0", "--iters", 4)


def test_the_trap_above_springs_where_code_is_let_run(tmp_path):
    torch.save(Trap(tmp_path / "sprung"), tmp_path / "code.pt")
    torch.load(tmp_path / "code.pt", weights_only=False).close()
    assert (tmp_path / "sprung").exists()


@every_script
def test_other_images_than_the_runs_are_refused(script, trained, tmp_path):
    """The folder that a run was trained on holds colour images now."""
    run = tmp_path / "run"
    shutil.copytree(trained(script), run)
    for i in range(12):
        (tmp_path / "set" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (28, 28), (9 * i, 0, 250)).save(tmp_path / "set" / "ab"[i % 2] / f"{i}.png")
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    checkpoint["args"] |= {"dataset": str(tmp_path / "set"), "data_dir": str(tmp_path)}
    torch.save(checkpoint, run / "checkpoint.pt")
    before = contents(run)
    assert "images of (3, " in refused(script, "--resume", run, "--iters", 4)
    assert same(contents(run), before)


@every_script
@pytest.mark.parametrize("room", [0.6, 0])
def test_a_full_disk_keeps_the_last_checkpoint(script, room, trained, tmp_path):
    """Files may only grow to `room` times the checkpoint: a write fails half-way, as on a disk that is full."""
    run = tmp_path / "run"
    shutil.copytree(trained(script), run)
    checkpoint, log = (run / "checkpoint.pt").read_bytes(), table(run / "log.csv")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(room * len(checkpoint)), limits[1]))
    try:
        said = refused(script, "--resume", run, "--iters", 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in said and (room == 0 or f"{run}/checkpoint.pt cannot be written" in said)
    assert (run / "checkpoint.pt").read_bytes() == checkpoint and not list(run.glob("checkpoint.pt.*"))
    assert table(run / "log.csv")[: len(log)] == log
    assert call(script, "--resume", run, "--iters", 4)[0] == 0  # with room again, it goes on


def test_a_log_survives_a_full_disk(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss\n1,0.5\n2,0.25\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            metrics.open_log(tmp_path / "log.csv", 2, ["step", "loss"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [row["step"] for row in table(tmp_path / "log.csv")] == ["1", "2"]


@every_script
def test_an_absurd_rate_stops_the_run_with_its_step(script, pictures, tmp_path):
    rates = ["--lr", "1e30"] if script in ("dcrw", "vae") else ["--lr-g", "1e30", "--lr-d", "1e30"]
    common = ["--dataset", pictures, "--data-dir", pictures.parent, "--out", tmp_path / "run", "--device", "cpu"]
    said = refused(script, *common, "--batch-size", 6, "--iters", 30, "--log-every", 10, *SMALL[script], *rates)
    assert re.search(r"not finite (by|at) step \d+", said) and "lower --lr" in said
    assert not (tmp_path / "run/checkpoint.pt").exists()


@every_script
@pytest.mark.parametrize("every, iters", [(1, 9), (100, 9), (100, 5)])
def test_weights_that_turn_nan_stop_the_run(script, every, iters, trained, tmp_path):
    """By the last step of update 5, all losses finite: found before they are drawn and saved, be it at the end, or by the
    next loss; the last good stay."""
    run, steps = tmp_path / "run", {}
    shutil.copytree(trained(script), run)

    def poison(optimiser, *rest):
        steps[optimiser] = steps.get(optimiser, 0) + 1
        if steps[optimiser] >= 3 and optimiser is list(steps)[-1]:  # the third update since the resumption
            for p in optimiser.param_groups[0]["params"]:
                p.data.fill_(float("nan"))

    handle = register_optimizer_step_post_hook(poison)
    try:
        said = refused(script, "--resume", run, "--iters", iters, "--log-every", 1, "--sample-every", every)
    finally:
        handle.remove()
    kept = metrics.load_checkpoint(run)
    assert ("not finite by step 6" if (every, iters) == (100, 9) else "not finite at step 5") in said
    assert kept["step"] == (4 if every == 1 else 2)
    assert all(value.isfinite().all() for net in kept["nets"].values() for value in net.values())


def broken_files():
    """Twenty kinds of files that are no whole image: (name, bytes)."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))

    def encoded(kind, **options):
        file = io.BytesIO()
        picture.save(file, kind, **options)
        return file.getvalue()

    png, jpeg = encoded("PNG"), encoded("JPEG")
    part = b"IDAT" + zlib.compress(bytes(5000))[:20]
    torn = png[:33] + struct.pack(">I", 20) + part + struct.pack(">I", zlib.crc32(part)) + bytes(50)  # no chunk comes next
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.png", png)
    floats = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), dtype=np.float32)).save(floats, "TIFF")
    wide = io.BytesIO()
    Image.fromarray(np.full((8, 8), 70_000, dtype=np.int32)).save(wide, "TIFF")
    return [
        ("empty.png", b""), ("torn.png", torn), ("text.png", b"this is no picture"), ("page.jpg", b"<html>404</html>"),
        ("zeros.png", bytes(5000)), ("random.webp", np.random.default_rng(1).bytes(5000)), ("zip.png", archive.getvalue()),
        ("head.png", png[:8]), ("cut.png", png[: len(png) // 2]), ("no-data.png", png[:33] + png[-12:]),
        ("crc.png", png[:29] + b"\0\0\0\0" + png[33:]), ("no-width.png", png[:16] + bytes(4) + png[20:]),
        ("head.jpg", jpeg[:2]), ("cut.jpg", jpeg[:200]), ("cut.gif", encoded("GIF")[:60]), ("cut.bmp", encoded("BMP")[:300]),
        ("cut.webp", encoded("WEBP")[:40]), ("cut.tif", encoded("TIFF")[:20]), ("floats.tif", floats.getvalue()),
        ("wide.tif", wide.getvalue()),
    ]  # fmt: skip


def test_a_thousand_broken_images_of_twenty_kinds_are_left_out(pictures, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    kinds = broken_files()
    assert len(kinds) == 20
    for name, content in kinds:
        for i in range(50):
            (folder / f"{i:02}-{name}").write_bytes(content)
    flags = ["--dataset", folder, "--data-dir", tmp_path, "--device", "cpu", "--batch-size", 6, "--iters", 2, *SMALL["vae"]]
    assert "none of its 1000 images can be read" in refused("vae", *flags, "--out", tmp_path / "none")
    for path in pictures.rglob("*.png"):
        shutil.copy(path, folder)
    status, _, err = call("vae", *flags, "--out", tmp_path / "run")
    assert status == 0 and err.count("\n") == 1 and "left out 1000 of 1040 files" in err
    images, _ = data.load(str(folder), tmp_path, "all", size=8)
    expected, _ = data.load(str(pictures), pictures.parent, "all", size=8)
    assert sorted(image.sum().item() for image in images) == sorted(image.sum().item() for image in expected)


# Kills --------------------------------------------------------------------------------------------------------------

KILLER = """
import contextlib, os, random, signal, sys, time
from pathlib import Path
import torch
import metrics, SCRIPT
torch.set_num_threads(1)  # one thread: processes forked from this one are sound
torch.optim.Adam([torch.zeros(1)])  # the first one imports much: here, and not in every child
flags, out, kills = sys.argv[1:-2], Path(sys.argv[-2]), int(sys.argv[-1])
chance, step, when = random.Random(0), 0, []

def start(iters):
    whose = ["--resume", str(out)] if (out / "checkpoint.pt").exists() else [*flags, "--out", str(out)]
    child = os.fork()
    if child:
        return child
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    status = 1
    try:
        SCRIPT.main([*whose, "--iters", str(iters)])
        status = 0
    finally:
        os._exit(status)

for n in range(kills):
    child, seen, more, patience = start(10**6), set(), chance.randrange(4), time.monotonic() + 60
    while n % 4 and len(seen) <= more and time.monotonic() < patience:
        with contextlib.suppress(FileNotFoundError):
            seen.add((out / "checkpoint.pt").stat().st_mtime_ns)
        time.sleep(0.001)
    time.sleep(chance.random() * 0.1)  # one in four dies as it starts, the others after up to three more checkpoints
    assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended by itself"
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    if (out / "checkpoint.pt").exists():
        before, step = step, metrics.load_run(out).step  # whole, and loads as a run
        assert step >= before
    else:
        assert step == 0
    when.append(f"{step}{'+' if (out / 'checkpoint.pt.part').exists() else ''}")
print("killed at steps (+: with a checkpoint half written):", *when, flush=True)
for folder in (out, out.with_name("whole")):
    out = folder
    assert os.waitpid(start(step + 5), 0)[1] == 0
"""


@pytest.mark.parametrize("script", ["gran", "vae"])
def test_a_run_killed_at_twenty_random_moments_ends_as_an_unbroken_one(script, pictures, tmp_path):
    flags = ["--dataset", pictures, "--data-dir", pictures.parent, "--device", "cpu", "--batch-size", "6", *SMALL[script],
             "--sample-every", "1"]  # fmt: skip
    command = [sys.executable, "-c", KILLER.replace("SCRIPT", script), *flags, tmp_path / "broken", 20]
    done = subprocess.run(list(map(str, command)), check=False, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    whole, broken = (contents(tmp_path / name) for name in ("whole", "broken"))
    assert broken.keys() == whole.keys()
    assert not [file for file in whole if not same(whole[file], broken[file])]
