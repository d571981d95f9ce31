"""The list of tests/reproduce.sh, and the tables that tests/figures.py makes of its results."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dcgan
import de_gan
import metrics

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import figures


def lines(name):
    """The rows of a list in reproduce.sh: (part, name, number of seeds, the rest)."""
    text = (ROOT / "tests/reproduce.sh").read_text()
    rows = re.search(rf"^{name}\(\).*?<<'END'\n(.*?)^END$", text, re.DOTALL | re.MULTILINE)[1]
    return [tuple(row.split(maxsplit=3)) for row in rows.splitlines()]


@pytest.mark.parametrize("row", lines("runs"), ids=lambda row: row[1])
def test_every_run_of_the_list_is_a_command(row):
    """Its flags are the script's, and 10 updates of it would begin."""
    script, *flags = row[3].split()
    args = importlib.import_module(script.removesuffix(".py")).parse_args(flags)
    assert args.dataset and int(row[2]) in (1, 3)


@pytest.mark.parametrize("row", lines("measures"), ids=lambda row: row[1])
def test_every_measure_of_the_list_is_of_its_runs(row):
    command, *rest = row[3].split()
    args = metrics.parse_args([command, *rest])
    runs = {row[1]: int(row[2]) for row in lines("runs")}
    for source in getattr(args, "source", []):
        name, seed = source.partition("@")[0].removeprefix("runs/").rsplit("-", 1)
        assert name in runs and (seed == "SEED" or int(seed) < runs[name]), source
        assert seed != "SEED" or int(row[2]) <= runs[name], source


@pytest.mark.parametrize("row", lines("explorations"), ids=lambda row: row[2])
def test_every_exploration_of_the_list_fits_its_run(row):
    part, run, look, *flags = " ".join(row).split()
    parts = {name: (own, command) for own, name, _, command in lines("runs")}
    own, command = parts[run.removesuffix("-0")]
    args = dcgan.parse_args(command.split()[1:])
    assert own == part and flags in ([], ["--on", "cifar10"])
    assert ("labels" in dcgan.EXPLORATIONS[look]) == args.conditional or look == "walk"


@pytest.mark.parametrize("row", lines("curves"), ids=lambda row: row[1])
def test_every_curve_of_the_list_reaches_its_last_point(row):
    """Nine points of 200 updates lie in a training of two epochs of MNIST, and no average hides."""
    args = de_gan.parse_args(" ".join(row[2:]).split())
    assert args.conditional and args.ema == 0 and args.epochs * (60_000 // 64) >= 9 * 200


def test_reproduce_is_sound_bash():
    subprocess.run(["bash", "-n", ROOT / "tests/reproduce.sh"], check=True)
    subprocess.run(["bash", "-n", ROOT / "tests/gpu_day.sh"], check=True)


@pytest.mark.parametrize("page", ["README.md", "assets/RESULTS.md"])
def test_tables_are_what_the_results_say(page):
    """No figure of a table is typed by hand: filling the page again changes nothing."""
    text = (ROOT / page).read_text()
    assert figures.fill(text, json.loads(figures.RESULTS.read_text())) == text
    names = re.findall(r"<!-- (\w+) -->", text)
    assert {*names} - {"end"} <= figures.TABLES.keys() and names.count("end") * 2 == len(names)


def test_pictures_of_the_pages_exist_and_are_made_by_the_list():
    runs = {f"{row[1]}-{seed}" for row in lines("runs") for seed in range(int(row[2]))}
    assert {source.split("/")[0] for source in figures.PICTURES.values()} <= runs
    shown = set()
    for page, folder in (("README.md", ROOT), ("assets/RESULTS.md", ROOT / "assets")):
        for picture in re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / page).read_text()):
            assert (folder / picture).is_file(), picture
            shown.add(Path(picture).name)
    assert shown == figures.PICTURES.keys()


def test_the_calls_of_the_whole_list_are_added_up(tmp_path, monkeypatch):
    """90 and 150 seconds are 4 minutes; without the whole list, nothing is said of one."""
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "RESULTS", tmp_path / "results.json")
    figures.collect()
    assert "made" not in json.loads(figures.RESULTS.read_text())
    (tmp_path / "results").mkdir()
    (tmp_path / "results/calls").write_text("90\n150\n")
    figures.collect()
    assert json.loads(figures.RESULTS.read_text())["made"]["took"] == "4 minutes, 2 calls"


def test_spread_is_mean_least_and_most():
    assert figures.spread([1.0, 2.0, 6.0]) == "3 (1 to 6)"
    assert figures.spread([0.25]) == "0.25" and figures.spread([]) == ""
