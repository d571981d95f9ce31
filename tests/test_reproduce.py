"""The list of commands in reproduce.sh, run with a `python` that notes how it was called and leaves empty files in the places of real ones."""

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHON = f"""#!{sys.executable} -SE
import os, re, sys, time
from pathlib import Path

argv = sys.argv[1:]
with open("calls", "a") as file:
    file.write(" ".join(argv) + "\\n")
flags = dict(zip(argv, argv[1:]))
run = Path(flags.get("--resume") or flags.get("--out", ""))
if argv[0] == "-":
    sys.stdin.read()
    for made in argv[1:]:
        Path(made).suffix == ".png" and Path(made).touch()
elif argv[0] == "metrics.py":
    for made in {{flags["--json"], flags.get("--out", flags["--json"])}}:
        Path(made).touch()
elif "--explore" in argv:
    (run / "explore").mkdir(exist_ok=True)
    (run / "explore" / flags["--explore"]).with_suffix(".png").touch()
else:
    (run / "samples").mkdir(parents=True, exist_ok=True)
    for made in ["checkpoint.pt", "samples/000300.png", *re.findall(r"\\w+\\.(?:png|gif)", Path(argv[0]).read_text())]:
        (run / made).touch()
    if run.name == os.environ.get("FAILS"):
        sys.exit("it fails")
    if run.name == os.environ.get("WAITS"):
        try:
            (run / "waits").touch()
            time.sleep(60)
        except KeyboardInterrupt:
            (run / "saved").touch()
            sys.exit(130)
"""


@pytest.fixture
def copy(tmp_path):
    """A copy of the repository's scripts, and of reproduce.sh, and a folder in the place of Telugu."""
    for path in [*ROOT.glob("*.py"), ROOT / "tests/reproduce.sh"]:
        (tmp_path / path.relative_to(ROOT)).parent.mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    (tmp_path / "data/telugu").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").write_text(PYTHON)
    (tmp_path / "bin/python").chmod(0o755)
    return tmp_path


def start(copy, *parts, **env):
    env = {**os.environ, "PATH": f"{copy / 'bin'}:{os.environ['PATH']}", "DEVICE": "cpu", "JOBS": "2", "DATA": "data", "ITERS": "", **env}
    return subprocess.Popen(["bash", "tests/reproduce.sh", *parts], cwd=copy, env=env, stdout=subprocess.PIPE, text=True)


def reproduce(copy, *parts, **env):
    """-> the exit status, and the calls of python it took."""
    (copy / "calls").write_text("")
    with start(copy, *parts, **env) as process:
        process.communicate(timeout=120)
    return process.returncode, (copy / "calls").read_text().splitlines()


def test_it_names_runs_that_it_trains_by_flags_that_there_are_and_all_of_readmes_pictures(copy):
    status, calls = reproduce(copy)
    assert status == 0
    runs = {path.parent.name for path in copy.glob("runs/*/done")}
    trained = [call for call in calls if " --out runs/" in call]
    assert len(trained) == len(runs) > 60
    measured = [call for call in calls if call.startswith("metrics.py ")]
    assert len(measured) == len(list(copy.glob("results/*.json"))) > 20
    for call in trained + measured:
        script, *argv = call.split()
        args = importlib.import_module(script.removesuffix(".py")).parse_args(argv)  # exits on a flag that there is not
        assert {Path(run).name.split("@")[0] for run in getattr(args, "source", [])} <= runs, call
    readme = (ROOT / "README.md").read_text()
    shown = set(re.findall(r"assets/([\w.-]+)", readme))
    assert {path.name for path in copy.glob("assets/*")} == shown == {path.name for path in ROOT.glob("assets/*")}
    named = {part for parts in re.findall(r"reproduce\.sh ([\w ]+)", readme) for part in parts.split()}
    (parts,) = re.findall(r"parts=\$\{\*:-(.*)\}", (copy / "tests/reproduce.sh").read_text())
    assert {"first", "assets"} | named == set(parts.split())
    again, calls = reproduce(copy)  # all stands: only what reads it is asked anew
    assert again == 0 and all(call.split()[0] == "-" for call in calls)


def test_a_rehearsal_is_short(copy):
    status, calls = reproduce(copy, "dcrw", "table1", ITERS="7")
    assert status == 0
    for call in calls:
        assert call.startswith("- ") or " dim " in call or (" --n 200" if "metrics.py" in call else " --iters 7 ") in call
        assert not call.startswith("de_gan") or "--vae-iters 4 " in call


def test_without_telugu_the_rest_is_made(copy):
    (copy / "data/telugu").rmdir()
    status, calls = reproduce(copy, "first", "telugu", "dcrw")
    assert status == 0 and not any("telugu" in call for call in calls)
    assert (copy / "results/dcrw-2.json").exists() and (copy / "runs/first/done").exists()


def test_a_run_that_fails_stops_it_and_goes_on_when_asked_again(copy):
    status, calls = reproduce(copy, "dcrw", FAILS="dcrw-1", JOBS="1")
    assert status != 0 and not (copy / "runs/dcrw-1/done").exists() and not any("metrics.py" in call for call in calls)
    status, calls = reproduce(copy, "dcrw")
    assert status == 0 and (copy / "runs/dcrw-1/done").exists()
    assert [call for call in calls if "runs/dcrw-1" in call] == [
        "dcrw.py --resume runs/dcrw-1 --device cpu", "metrics.py eval runs/dcrw-1 --data-dir data --device cpu --json results/dcrw-1.json",
    ]  # fmt: skip
    assert not any(f"--out runs/{done} " in call for done in ("dcrw-0", "dcrw-none-0") for call in calls)


def test_ctrl_c_reaches_the_runs(copy):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, as behind the & of a script, bash could not trap it
    process = start(copy, "dcrw", WAITS="dcrw-0")
    signal.signal(signal.SIGINT, before)
    while not (copy / "runs/dcrw-0/waits").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130 and (copy / "runs/dcrw-0/saved").exists() and not (copy / "runs/dcrw-0/done").exists()
