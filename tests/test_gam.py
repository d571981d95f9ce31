"""Battles: expected figures from eqs. 10 and 11, the paper's tables and scipy. About 3 s."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from scipy.stats.contingency import relative_risk

import data
import metrics

N = 1000


class Player:
    """A run whose D errs on known shares. An image is (its maker, its place in 0..1).

    The maker is a tenth of its number, 0 for real; hundredths of it are the label it was drawn for,
    which a conditional D wants to be told too. Training images are made by -1.
    """

    images = labels = None

    def __init__(self, name, number, errors=None, conditional=False, width=2, classes=()):
        self.name, self.number, self.errors, self.conditional = name, number, errors, conditional
        self.width, self.classes, self.labels_seen = width, list(classes), []
        self.logits = None if errors is None else self.judge
        self.args = SimpleNamespace(dataset="digits", size=28, batch_size=50)

    def sample(self, n, labels=None, seed=0):
        self.labels_seen.append(labels)
        images = torch.full((n, 1, 1, self.width), self.number / 10)
        if labels is not None:
            images += labels[:, None, None, None] / 100
        images[..., 1] = ((torch.arange(n) + 0.5) / n)[:, None, None]
        return images

    def judge(self, x, labels=None):
        maker, place = (10 * x[:, 0, 0, 0] + 1e-4).floor(), x[:, 0, 0, 1]
        if self.conditional:
            assert torch.equal((100 * (x[:, 0, 0, 0] - maker / 10)).round().long(), labels)
        wrong = place < torch.tensor([self.errors[int(m)] for m in maker], dtype=torch.float64)
        is_real = (maker == 0) | (maker == 9)
        return torch.where(wrong ^ is_real, 1.0, -1.0)  # positive is real


def real(n=N, labels=None, number=0):
    return Player("real", number).sample(n, labels)


def training(n=N):
    return real(n, number=9)


@pytest.mark.parametrize("r_test, r_sample, winner", [
    (0.79, 1.75, "M2"), (0.95, 1.19, "M2"), (1.28, 1.001, "M2"), (1.29, 1.011, "M2"),
    (1.00, 2.289, "M2"), (0.95, 13.68, "M2"), (0.99, 13.97, "M2"), (0.99, 2.38, "M2"),  # Table 2
    (1.01, 0.94, "M1"), (1.09, 1.07, "M2"), (1.07, 0.95, "M1"),  # Table 4: a cycle, by eq. 11
    (1.31, 0.5, "tie"), (1 / 1.31, 2.0, "tie"), (1.3, 0.5, "M1"), (1 / 1.3, 0.5, "M1"),
    (1.0, 1.0, "tie"),
])  # fmt: skip
def test_eq_11_decides_as_the_paper_does(r_test, r_sample, winner):
    result = metrics.gam_from_errors(0.3 * r_test, 0.3, 0.05 * r_sample, 0.05)
    assert result["r_test"] == pytest.approx(r_test)
    assert result["r_sample"] == pytest.approx(r_sample) and result["winner"] == winner
    mirrored = metrics.gam_from_errors(0.3, 0.3 * r_test, 0.05, 0.05 * r_sample)
    assert mirrored["winner"] == {"M1": "M2", "M2": "M1", "tie": "tie"}[winner]
    assert mirrored["r_sample"] == pytest.approx(1 / r_sample)


def test_error_rates_of_zero():
    def battle(*rates):
        result = metrics.gam_from_errors(*rates, n=N)
        return result["r_test"], result["r_sample"], result["winner"]

    assert battle(0, 0, 0, 0) == (1, 1, "tie")
    assert battle(0.2, 0.2, 0, 0.1) == (1, 0, "M1")
    assert battle(0.2, 0.2, 0.1, 0) == (1, math.inf, "M2")
    assert battle(0.2, 0, 0.1, 0.3) == (math.inf, pytest.approx(1 / 3), "tie")
    assert battle(0, 0.2, 0.1, 0.3) == (0, pytest.approx(1 / 3), "tie")


def test_tolerance_moves_the_tie():
    assert metrics.gam_from_errors(0.4, 0.2, 0.1, 0.2)["winner"] == "tie"
    assert metrics.gam_from_errors(0.4, 0.2, 0.1, 0.2, tolerance=1.0)["winner"] == "M1"


def test_the_second_verdict_asks_whether_one_d_overfits_more():
    """A strong G's D errs more on everything: eq. 11 ties for ever, though nobody overfits."""
    result = metrics.gam_from_errors(0.04, 0.30, 0.10, 0.02, e1_train=0.04, e2_train=0.29)
    assert result["winner"] == "tie" and result["winner_overfit"] == "M2"
    assert result["r_overfit"] == pytest.approx((0.04 / 0.04) / (0.30 / 0.29))
    overfit = metrics.gam_from_errors(0.2, 0.2, 0.1, 0.02, e1_train=0.02, e2_train=0.19)
    assert overfit["winner"] == "M2" and overfit["winner_overfit"] == "tie"
    assert "winner_overfit" not in metrics.gam_from_errors(0.2, 0.2, 0.1, 0.2)


@pytest.mark.parametrize("a, b", [(300, 300), (12, 250), (999, 1), (1000, 700)])
def test_intervals_are_those_of_the_relative_risk(a, b):
    expected = relative_risk(a, N, b, N).confidence_interval(0.95)
    result = metrics.gam_from_errors(a / N, b / N, b / N, a / N, n=N)
    assert result["r_test_95"] == pytest.approx(tuple(expected), rel=1e-6)
    mirrored = 1 / expected.high, 1 / expected.low
    assert result["r_sample_95"] == pytest.approx(mirrored, rel=1e-6)
    assert metrics.gam_from_errors(a / N, b / N, b / N, a / N)["r_sample_95"] is None
    few = metrics.gam_from_errors(0.3, 0.2, 0.1, 0.1, n=N, n_test=100)["r_test_95"]
    assert few == pytest.approx(tuple(relative_risk(30, 100, 20, 100).confidence_interval()))


def test_intervals_of_zero_counts_hold_the_ratio():
    result = metrics.gam_from_errors(0, 0, 0.1, 0, n=100)
    assert result["r_test_95"] == (0, math.inf)
    low, high = result["r_sample_95"]  # 10 of 100 against none: half a count for none
    expected = 10 / 0.5 * math.exp(-1.959964 * math.sqrt(1 / 10 + 1 / 0.5 - 2 / 100))
    assert (low, high) == (pytest.approx(expected), math.inf)
    mirrored = metrics.gam_from_errors(0, 0, 0, 0.1, n=100)["r_sample_95"]
    assert mirrored == (0, pytest.approx(1 / expected))


@pytest.mark.parametrize("rates, named", [
    ((1.1, 0, 0, 0), "e1_test"), ((0, -0.1, 0, 0), "e2_test"), ((0, 0, math.nan, 0), "e1_fake"),
    ((0, 0, 0, 2), "e2_fake"), ((0.1, 0.1, 0.1, 0.1, None, -1), "tolerance"),
    ((0, 0, 0, 0, None, math.nan), "tolerance"),
])  # fmt: skip
def test_impossible_rates_are_refused(rates, named):
    with pytest.raises(ValueError, match=f"^{named}: "):
        metrics.gam_from_errors(*rates)


def test_gam_finds_the_error_rates():
    a = Player("a", 1, {0: 0.20, 9: 0.18, 1: 0.5, 2: 0.10})
    b = Player("b", 2, {0: 0.25, 9: 0.05, 1: 0.40, 2: 0.5})
    result = metrics.gam(a, b, real().numpy(), n=N, train_images=training())
    rates = {"e1_test": 0.20, "e2_test": 0.25, "e1_fake": 0.10, "e2_fake": 0.40, "e1_train": 0.18,
             "e2_train": 0.05}
    assert {name: result[name] for name in rates} == pytest.approx(rates)
    assert result["r_test"] == pytest.approx(0.8) and result["r_sample"] == pytest.approx(0.25)
    assert result["winner"] == "M1"  # D1 takes fewer of G2's samples for real than D2 of G1's
    assert result["winner_overfit"] == "tie" and result["r_overfit"] == pytest.approx(2 / 9)
    assert metrics.gam(b, a, real(), n=N)["winner"] == "M2"
    interval = tuple(relative_risk(100, N, 400, N).confidence_interval())
    assert result["r_sample_95"] == pytest.approx(interval, rel=1e-6)


def test_errors_are_means_over_the_snapshots_of_d():
    a = Player("a", 1, {0: 0.9, 1: 0.9, 2: 0.9})
    at = [{0: 0.1, 1: 0.2, 2: 0.30}, {0: 0.3, 1: 0.4, 2: 0.10}]
    a.judges = lambda: (Player("", 1, errors).judge for errors in at)
    b = Player("b", 2, {0: 0.2, 1: 0.3, 2: 0.5})
    rates = metrics.error_rates([a, b], real(), n=N)
    assert rates["test"] == pytest.approx([0.2, 0.2]) and rates["train"] == [None, None]
    assert np.array(rates["fake"]) == pytest.approx(np.array([[0.3, 0.2], [0.3, 0.5]]))


def test_the_auc_is_that_of_mann_and_whitney():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(n, 1, 1, 2, generator=generator).round(decimals=1) for n in (80, 120))
    run = Player("a", 1, {})
    run.logits = lambda images, labels=None: images[:, 0, 0, 0] ** 2
    run.sample = lambda n, labels=None, seed=0: y
    expected = mannwhitneyu(x[:, 0, 0, 0], y[:, 0, 0, 0]).statistic / 80 / 120
    assert metrics.error_rates([run], x, n=120)["auc"] == [pytest.approx(expected, rel=1e-6)]


def test_a_run_without_a_discriminator_gets_one_error():
    a, vae = Player("a", 1, {0: 0.2, 1: 0.5, 2: 0.058}), Player("vae", 2)
    for result in (metrics.gam(a, vae, real(), n=N), metrics.gam(vae, a, real(), n=N)):
        assert result["error"] == pytest.approx(0.058) and result["winner"] is None
    with pytest.raises(metrics.InputError, match="neither"):
        metrics.gam(vae, vae, real(), n=N)


def test_labels_reach_conditional_players_only():
    rates = {0: 0.2, 1: 0.1, 2: 0.1}
    labels = torch.arange(N) % 3 + 4
    a, b, free = (Player(name, i, rates, i < 3) for i, name in ((1, "a"), (2, "b"), (3, "free")))
    metrics.gam(a, b, real(labels=labels), n=N, test_labels=labels.numpy())
    seen = a.labels_seen[0]
    assert seen.shape == (N,) and set(seen.tolist()) == {4, 5, 6}
    unknown = torch.where(labels == 5, -1, labels)  # images without a label are left out
    metrics.gam(a, b, real(labels=labels), n=N, test_labels=unknown)
    assert set(a.labels_seen[-1].tolist()) == {4, 6}
    free.logits = None
    for opponent, test_labels in ((free, labels), (b, None), (b, torch.full((N,), -1))):
        with pytest.raises(metrics.InputError, match="label"):
            metrics.gam(a, opponent, real(), n=N, test_labels=test_labels)
    judge, drawer = Player("judge", 1, rates), Player("drawer", 2, None, True)
    error = metrics.gam(judge, drawer, real(), n=N, test_labels=labels)["error"]
    assert error == pytest.approx(0.1)
    assert judge.labels_seen == [None] and drawer.labels_seen[0].shape == (N,)


def test_the_test_images_are_shuffled_and_may_be_fewer_than_the_samples():
    a, b = Player("a", 1, {0: 0.2, 1: 0.5, 2: 0.1}), Player("b", 2, {0: 0.3, 1: 0.2, 2: 0.5})
    some = metrics.gam(a, b, real(), n=500)  # the errors are first
    assert some["e1_test"] == pytest.approx(0.2, abs=0.05)
    few = metrics.gam(a, b, real(100), n=N)
    expected = [tuple(relative_risk(*counts).confidence_interval())
                for counts in ((20, 100, 30, 100), (100, N, 200, N))]
    assert few["r_test_95"] == pytest.approx(expected[0], rel=1e-6)
    assert few["r_sample_95"] == pytest.approx(expected[1], rel=1e-6)


def test_a_logit_of_0_calls_nothing_real():
    undecided, vae = Player("a", 1, {}), Player("vae", 2)
    undecided.logits = lambda x, labels=None: torch.zeros(len(x))
    rates = metrics.error_rates([undecided, vae], real(), n=N)
    assert (rates["test"], rates["fake"]) == ([1, None], [[0, 0], [None, None]])
    assert rates["auc"] == [0.5, None]


def test_other_images_are_refused():
    rates = {0: 0.1, 1: 0.1, 2: 0.1}
    a, b = Player("a", 1, rates), Player("wide", 2, rates, width=3)
    with pytest.raises(metrics.InputError, match=r"wide draws images of another shape .*1, 3\)"):
        metrics.gam(a, b, real(), n=N)
    for wrong in (255 * real(), 2 * real() - 1, real().permute(0, 2, 3, 1)[:, :, :, :, None]):
        with pytest.raises(ValueError, match="^test_images: "):
            metrics.gam(a, a, wrong, n=N)


# the command line


@pytest.fixture
def command(monkeypatch, tmp_path):
    """battle(players, argv...) runs `metrics.py gam` with players in the place of runs."""
    images, classes = {"test": real(), "train": training()}, ["4", "5", "6"]
    labels = torch.arange(N) % 3
    sets = {split: data.Loaded(x, labels, classes=classes) for split, x in images.items()}
    monkeypatch.setattr(metrics.data, "load", lambda name, where, split, size=None: sets[split])

    def battle(players, *argv):
        monkeypatch.setattr(metrics, "open_source", lambda text, *a: players[text.strip("/")])
        file = tmp_path / "gam.json"
        metrics.main(["gam", *argv, "--json", str(file), "--device", "cpu"])
        return json.loads(file.read_text())

    battle.sets = sets
    return battle


def players():
    return {
        "gran1": Player("gran1", 1, {0: 0.2, 9: 0.2, 1: 0.4, 2: 0.5, 3: 0.3, 4: 0.347}),
        "gran3": Player("gran3", 2, {0: 0.2, 9: 0.1, 1: 0.2, 2: 0.4, 3: 0.25, 4: 0.106}),
        "gran5": Player("gran5", 3, {0: 0.4, 9: 0.4, 1: 0.2, 2: 0.2, 3: 0.4, 4: 0.01}),
        "vae": Player("vae", 4),
    }


def test_command_line_prints_every_pair(command, capsys):
    content = command(players(), *players(), "--n", str(2 * N))
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    low, high = relative_risk(1000, 2 * N, 400, 2 * N).confidence_interval()
    interval = [f"{low:.3g}", "to", f"{high:.3g}"]
    assert ["gran1", "vs.", "gran3", "1", "2.5", *interval, "M2", "tie", "-"] in lines
    assert any(line[:5] == ["gran1", "vs.", "gran5", "0.5", "1.5"]
               and line[-3:] == ["tie", "M2", "-"] for line in lines)
    assert any(line[:3] == ["gran1", "vs.", "vae"] and "0.347" in line for line in lines)
    assert ["2", "gran3", "0.100", "0.200", "2.00"] in [line[:5] for line in lines]
    assert "2000 samples of each, 1000 test images" in out and "not for another training" in out
    assert len(content["battles"]) == 6
    first, of_test = content["battles"][0], relative_risk(200, N, 200, N).confidence_interval()
    assert content["error_rates"]["fake"][0][3] == pytest.approx(0.347)
    assert (first["winner"], first["winner_overfit"]) == ("M2", "tie")
    assert first["r_test_95"] == pytest.approx(tuple(of_test), rel=1e-6)
    assert content["error_rates"]["train"] == pytest.approx([0.2, 0.1, 0.4, None])


@pytest.mark.parametrize("argv", [["a-s0", "a-s1", "b-s0", "b-s1"], ["a-s0,a-s1", "b-s0,b-s1"],
                                  ["a-s*", "b-s*"], ["a-s0/", "a-s1/", "b-s0/", "b-s1/"]])
def test_seeds_of_one_model_battle_as_a_group(command, capsys, monkeypatch, tmp_path, argv):
    monkeypatch.chdir(tmp_path)
    for name in ("a-s0", "a-s1", "b-s0", "b-s1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoint.pt").write_text("")
    errors = [{0: 0.2, 9: 0.2, 3: 0.10, 4: 0.20}, {0: 0.2, 9: 0.2, 3: 0.30, 4: 0.20},
              {0: 0.2, 9: 0.2, 1: 0.20, 2: 0.40}, {0: 0.2, 9: 0.2, 1: 0.40, 2: 0.60}]
    names = ["a-s0", "a-s1", "b-s0", "b-s1"]
    full = {name: Player(name, i + 1, dict.fromkeys(range(5), 0.5) | error)
            for i, (name, error) in enumerate(zip(names, errors))}
    content = command(full, *argv)
    battle, = content["battles"]
    pairs = [0.10 / 0.20, 0.20 / 0.40, 0.30 / 0.40, 0.20 / 0.60]  # a0 b0, a0 b1, a1 b0, a1 b1
    assert battle["r_sample"] == pytest.approx(0.20 / 0.40)  # of the mean error rates
    assert battle["r_sample_range"] == pytest.approx([min(pairs), max(pairs)])
    assert battle["winner"] == battle["winner_overfit"] == "M1" and battle["won"] == [4, 0]
    assert sorted(b["r_sample"] for b in battle["battles"]) == pytest.approx(sorted(pairs))
    assert "0.333 to 0.75" in capsys.readouterr().out


def test_conditional_runs_are_told_labels_by_name(command):
    """Label 4 of a player is class "4", whose label in the data set is 0."""
    classes = ["0", "1", "2", "3", "4", "5", "6"]
    labels = torch.arange(N) % 3
    for split, number in (("test", 0), ("train", 9)):
        command.sets[split] = data.Loaded(real(labels=labels + 4, number=number), labels,
                                          classes=["4", "5", "6"])
    errors = {0: 0.2, 9: 0.1, 1: 0.3, 2: 0.1}
    two = {name: Player(name, i + 1, errors, True, classes=classes)
           for i, name in enumerate(("a", "b"))}
    content = command(two, "a", "b")
    assert content["error_rates"]["test"] == pytest.approx([0.2, 0.2])
    two["b"].classes = classes[::-1]
    with pytest.raises(SystemExit):
        command(two, "a", "b")


def test_command_line_needs_two_runs_and_a_discriminator(command, capsys):
    vaes = {name: Player(name, i + 1) for i, name in enumerate("ab")}
    for argv, said in ((["a"], "two runs"), (["a", "b"], "a discriminator"),
                       (["a", "b", "--tolerance", "-1"], "--tolerance")):
        with pytest.raises(SystemExit) as stop:
            command(vaes, *argv)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and said in error and error.count("\n") == 1
