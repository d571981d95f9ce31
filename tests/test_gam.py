"""Battles: expected figures from eqs. 10 and 11, the paper's tables and scipy. About 3 s."""

import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import mannwhitneyu
from scipy.stats.contingency import relative_risk

import data
import metrics

N = 1000


def interval(a, n, b, m):
    """scipy's 95 % interval of the ratio of a errors in n to b errors in m."""
    return pytest.approx(tuple(relative_risk(a, n, b, m).confidence_interval()), rel=1e-6)


class Player:
    """A run whose D, at each of its snapshots, errs on known shares of the images of a maker.

    An image is (maker / 10, place in 0..1), maker 0 for test, 9 for training images.
    """

    args, width = SimpleNamespace(), 2

    def __init__(self, name, number, *errors):
        self.name, self.number, self.errors, self.logits = name, number, errors, errors or None

    def sample(self, n, seed=0):
        images = torch.full((n, 1, 1, self.width), self.number / 10)
        images[..., 1] = ((torch.arange(n) + 0.5) / n)[:, None, None]
        return images

    def judge(self, x):
        maker, place = (10 * x[:, 0, 0, 0] + 1e-4).floor(), x[:, 0, 0, 1]
        shares = [[errors[int(m)] for m in maker] for errors in self.errors]
        wrong = place < torch.tensor(shares, dtype=torch.float64)
        return torch.where(wrong ^ (maker % 9 == 0), 1.0, -1.0)  # positive is real


def real(n=N, number=0):
    return Player("real", number).sample(n)


@pytest.mark.parametrize("r_test, r_sample, winner", [
    (0.79, 1.75, "M2"), (0.95, 1.19, "M2"), (1.28, 1.001, "M2"), (1.29, 1.011, "M2"),
    (1.00, 2.289, "M2"), (0.95, 13.68, "M2"), (0.99, 13.97, "M2"), (0.99, 2.38, "M2"),  # Table 2
    (1.01, 0.94, "M1"), (1.09, 1.07, "M2"), (1.07, 0.95, "M1"),  # Table 4: a cycle, by eq. 11
    (1.31, 0.5, "tie"), (1 / 1.31, 2.0, "tie"), (1.3, 0.5, "M1"), (1 / 1.3, 0.5, "M1"),
    (1.0, 1.0, "tie"),
])  # fmt: skip
def test_eq_11_decides_as_the_paper_does(r_test, r_sample, winner):
    rates = 0.3 * r_test, 0.3, 0.05 * r_sample, 0.05
    result = metrics.gam_from_errors(*rates)
    assert (result["r_test"], result["r_sample"]) == pytest.approx((r_test, r_sample))
    assert result["winner"] == winner
    mirrored = metrics.gam_from_errors(0.3, 0.3 * r_test, 0.05, 0.05 * r_sample)
    assert mirrored["winner"] == {"M1": "M2", "M2": "M1", "tie": "tie"}[winner]
    better = "tie" if r_sample == 1 else "M1" if r_sample < 1 else "M2"
    assert metrics.gam_from_errors(*rates, tolerance=0.32)["winner"] == better


def test_error_rates_of_zero():
    def battle(*rates):
        result = metrics.gam_from_errors(*rates, n=100)
        return [result[name] for name in ("r_test", "r_sample", "winner", "r_sample_95")]

    bound = 20 / math.exp(1.959964 * math.sqrt(1 / 10 + 1 / 0.5 - 2 / 100))  # 10 to half a count
    assert battle(0, 0, 0, 0) == [1, 1, "tie", (0, math.inf)]
    assert battle(0.2, 0.2, 0, 0.1) == [1, 0, "M1", (0, pytest.approx(1 / bound))]
    assert battle(0.2, 0.2, 0.1, 0) == [1, math.inf, "M2", (pytest.approx(bound), math.inf)]
    assert battle(0.2, 0, 0.1, 0.2)[::2] == [math.inf, "tie"]
    assert battle(0, 0.2, 0.1, 0.2)[::2] == [0, "tie"]


@pytest.mark.parametrize("a, b", [(300, 300), (12, 250), (999, 1), (1000, 700)])
def test_intervals_are_those_of_the_relative_risk(a, b):
    rates = a / N, b / N, b / N, a / N
    result = metrics.gam_from_errors(*rates, n=N)
    assert result["r_sample_95"] == interval(b, N, a, N)
    assert "r_sample_95" not in metrics.gam_from_errors(*rates)


def test_the_second_verdict_asks_whether_one_d_overfits_more():
    """A strong G's D errs more on everything: eq. 11 ties for ever, though nobody overfits."""
    result = metrics.gam_from_errors(0.04, 0.30, 0.10, 0.02, e1_train=0.04, e2_train=0.29)
    assert result["winner"] == "tie" and result["winner_overfit"] == "M2"
    overfit = metrics.gam_from_errors(0.2, 0.2, 0.1, 0.02, e1_train=0.02, e2_train=0.19)
    assert overfit["winner"] == "M2" and overfit["winner_overfit"] == "tie"


def test_impossible_rates_are_refused():
    for name, wrong in (("e1_test", 1.1), ("e2_test", -0.1), ("e1_fake", math.nan), ("e2_fake", 2)):
        rates = dict.fromkeys(("e1_test", "e2_test", "e1_fake", "e2_fake"), 0.1) | {name: wrong}
        with pytest.raises(ValueError, match=f"^{name}: "):
            metrics.gam_from_errors(**rates)


def test_gam_finds_the_error_rates():
    a = Player("a", 1, {0: 0.20, 9: 0.18, 1: 0.5, 2: 0.10})
    b = Player("b", 2, {0: 0.25, 9: 0.05, 1: 0.40, 2: 0.5})
    result = metrics.gam(a, b, real(100).numpy(), n=N, train_images=real(number=9))
    rates = {"e1_test": 0.20, "e2_test": 0.25, "e1_fake": 0.10, "e2_fake": 0.40, "e1_train": 0.18,
             "e2_train": 0.05, "r_test": 0.8, "r_sample": 0.25, "r_overfit": 2 / 9}
    assert {name: result[name] for name in rates} == pytest.approx(rates)
    assert result["winner"] == "M1"  # D1 takes fewer of G2's samples for real than D2 of G1's
    assert result["winner_overfit"] == "tie" and result["r_sample_95"] == interval(100, N, 400, N)
    assert metrics.gam(b, a, real(), n=N)["winner"] == "M2"
    some = metrics.gam(a, b, real(), n=500)  # shuffled: the errors are first
    assert some["e1_test"] == pytest.approx(0.2, abs=0.05) and "winner_overfit" not in some


def test_errors_are_means_over_the_snapshots_of_d():
    a = Player("a", 1, {0: 0.1, 1: 0.2, 2: 0.3}, {0: 0.3, 1: 0.4, 2: 0.1})
    rates = metrics.error_rates([a, Player("b", 2, {0: 0.2, 1: 0.3, 2: 0.5})], real(), n=N)
    assert rates["test"] == pytest.approx([0.2, 0.2]) and rates["train"] == [None, None]
    assert rates["fake"] == [pytest.approx([0.3, 0.2]), pytest.approx([0.3, 0.5])]


def test_the_auc_is_that_of_mann_and_whitney_and_a_logit_of_0_calls_nothing_real():
    x, y = (torch.rand(n, 1, 1, 2).round(decimals=1) for n in (80, 120))  # with ties
    run, undecided, vae = Player("a", 1, {0: 0}), Player("b", 2, {0: 0}), Player("vae", 3)
    run.judge, run.sample = lambda z: z[None, :, 0, 0, 0] ** 2, lambda n, seed: y
    undecided.judge = lambda z: torch.zeros(1, len(z))
    expected = mannwhitneyu(x[:, 0, 0, 0], y[:, 0, 0, 0]).statistic / 80 / 120
    rates = metrics.error_rates([run, undecided, vae], x, n=120)
    assert rates["auc"] == [pytest.approx(expected, rel=1e-6), 0.5, None]
    assert rates["test"][1:] == [1, None] and rates["fake"][1:] == [[0] * 3, [None] * 3]


def test_a_run_without_a_discriminator_gets_one_error():
    a, vae = Player("a", 1, {0: 0.2, 1: 0.5, 2: 0.058}), Player("vae", 2)
    for result in (metrics.gam(a, vae, real(), n=N), metrics.gam(vae, a, real(), n=N)):
        assert result["error"] == pytest.approx(0.058) and result["winner"] is None
    with pytest.raises(metrics.InputError, match="none of the runs has a discriminator"):
        metrics.gam(vae, vae, real(), n=N)


def test_other_images_are_refused():
    a, wide = Player("a", 1, {0: 0.1, 1: 0.1}), Player("wide", 2)
    wide.width = 3
    with pytest.raises(metrics.InputError, match=r"wide is not of the test images' shape.*1, 3\)"):
        metrics.gam(a, wide, real(), n=N)
    for wrong in (255 * real(), 2 * real() - 1, real().permute(0, 2, 3, 1)[:, :, :, :, None]):
        with pytest.raises(ValueError, match="^test_images: "):
            metrics.gam(a, a, wrong, n=N)


@pytest.fixture
def command(monkeypatch, tmp_path):
    """battle(players, line): `metrics.py gam` of players."""
    def load(name, where, split, size=None):
        images = real(number=9 * (split == "train"))
        return data.Loaded(images, torch.zeros(N, dtype=torch.int64), classes=["."])

    def battle(players, line):
        monkeypatch.setattr(metrics, "load_run", lambda text, *a: players[text.strip("/")])
        metrics.main(f"gam {line} --dataset digits --json {tmp_path}/gam --device cpu".split())
        return json.loads((tmp_path / "gam").read_text())

    monkeypatch.setattr(metrics.data, "load", load)
    return battle


def test_command_line_prints_every_pair(command, capsys):
    errors = {"gran1": {0: 0.2, 9: 0.2, 1: 0.4, 2: 0.5, 3: 0.3, 4: 0.347},
              "gran3": {0: 0.2, 9: 0.1, 1: 0.2, 2: 0.4, 3: 0.25, 4: 0.106},
              "gran5": {0: 0.4, 9: 0.4, 1: 0.2, 2: 0, 3: 0.4, 4: 0.01}, "vae": None}
    players = {name: Player(name, i, *filter(None, [own]))
               for i, (name, own) in enumerate(errors.items(), 1)}
    content = command(players, f"gran1 gran3 gran5 vae --n {2 * N}")
    text = " ".join(capsys.readouterr().out.split())
    low, high = relative_risk(1000, 2 * N, 400, 2 * N).confidence_interval()
    assert f"gran1 vs. gran3 1 2.5 {low:.3g} to {high:.3g} M2 tie -" in text
    assert re.search(r"gran1 vs. gran5 0.5 1.5 \S+ to \S+ tie M2 -", text)
    assert re.search(r"gran1 vs. vae( -)+ 0.347", text) and "gran3 0.100 0.200 2.00 " in text
    assert "2000 samples of each, 1000 test images" in text and "not for another training" in text
    _, _, _, infinite, _, _ = content["battles"]
    assert infinite["r_sample"] is None  # JSON has no infinity
    assert content["error_rates"]["train"] == pytest.approx([0.2, 0.1, 0.4, None])


@pytest.mark.parametrize("names", ["a-s0 a-s1 b-s0 b-s1", "a-0 a-1 b-0 b-1",
                                   "a_seed0/ a_seed1/ b_seed0/ b_seed1/"])
def test_seeds_of_one_model_battle_as_a_group(command, capsys, names):
    errors = {3: 0.10, 4: 0.20}, {3: 0.30, 4: 0.20}, {1: 0.20, 2: 0.40}, {1: 0.40, 2: 0.60}
    full = {name: Player(name, i + 1, dict.fromkeys(range(5), 0.5) | {0: 0.2, 9: 0.2} | errors[i])
            for i, name in enumerate(names.replace("/", "").split())}
    battle, = command(full, names)["battles"]
    pairs = [0.10 / 0.20, 0.20 / 0.40, 0.30 / 0.40, 0.20 / 0.60]  # a0 b0, a0 b1, a1 b0, a1 b1
    assert battle["r_sample"] == pytest.approx(0.20 / 0.40)  # of the mean error rates
    assert battle["r_sample_range"] == pytest.approx([min(pairs), max(pairs)])
    assert battle["winner"] == battle["winner_overfit"] == "M1" and battle["won"] == [4, 0]
    assert "0.333 to 0.75" in capsys.readouterr().out


@pytest.mark.parametrize("line, said", [("a", "two runs"), ("a b", "a discriminator"),
    ("a b --tolerance x", "--tolerance")])  # fmt: skip
def test_one_line_says_why_there_is_no_battle(command, capsys, line, said):
    players = {"a": Player("a", 1), "b": Player("b", 2)}
    with pytest.raises(SystemExit) as stop:
        command(players, line)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error.splitlines()[-1]
