"""Battles: expected figures from eqs. 10 and 11, the paper's tables and scipy's relative risk. About 3 s."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from scipy.stats.contingency import relative_risk

import metrics

N = 1000


class Player:
    """A run whose D errs on known shares: an image is (who made it, where it stands in 0..1), and D looks at that.

    Hundredths of the first number are the label that it was drawn for; a conditional D wants to be told the same.
    """

    def __init__(self, name, number, errors=None, conditional=False, width=2):
        self.name, self.number, self.errors, self.conditional, self.width = name, number, errors, conditional, width
        self.logits = None if errors is None else self.judge
        self.args = SimpleNamespace(dataset="digits", size=28, batch_size=50)
        self.labels_seen = []

    def sample(self, n, labels=None, seed=0):
        self.labels_seen.append(labels)
        images = torch.full((n, 1, 1, self.width), float(self.number))
        if labels is not None:
            images += labels[:, None, None, None] / 100
        images[..., 1] = ((torch.arange(n) + 0.5) / n)[:, None, None]
        return images

    def judge(self, x, labels=None):
        maker, place = x[:, 0, 0, 0].floor(), x[:, 0, 0, 1]
        if self.conditional:
            assert torch.equal((100 * (x[:, 0, 0, 0] - maker)).round().long(), labels)
        wrong = place < torch.tensor([self.errors[int(m)] for m in maker], dtype=torch.float64)
        return torch.where(wrong ^ (maker == 0), 1.0, -1.0)  # positive reads "real", and maker 0 is


def real(n=N, labels=None):
    return Player("real", 0).sample(n, labels)


@pytest.mark.parametrize(
    "r_test, r_sample, winner",
    [(0.79, 1.75, "M2"), (0.95, 1.19, "M2"), (1.28, 1.001, "M2"), (1.29, 1.011, "M2"), (1.00, 2.289, "M2"),
     (0.95, 13.68, "M2"), (0.99, 13.97, "M2"), (0.99, 2.38, "M2"),  # GRAN, Table 2: the later player wins every battle
     (1.01, 0.94, "M1"), (1.09, 1.07, "M2"), (1.07, 0.95, "M1"),    # Table 4: a cycle, by eq. 11
     (1.31, 0.5, "tie"), (1 / 1.31, 2.0, "tie"), (1.3, 0.5, "M1"), (1 / 1.3, 0.5, "M1"), (1.0, 1.0, "tie")],
)  # fmt: skip
def test_eq_11_decides_as_the_paper_does(r_test, r_sample, winner):
    result = metrics.gam_from_errors(0.3 * r_test, 0.3, 0.05 * r_sample, 0.05)
    assert result["r_test"] == pytest.approx(r_test) and result["r_sample"] == pytest.approx(r_sample)
    assert result["winner"] == winner
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


@pytest.mark.parametrize("a, b", [(300, 300), (12, 250), (999, 1), (1000, 700)])
def test_intervals_are_those_of_the_relative_risk(a, b):
    expected = relative_risk(a, N, b, N).confidence_interval(0.95)
    result = metrics.gam_from_errors(a / N, b / N, b / N, a / N, n=N)
    assert result["r_test_95"] == pytest.approx(tuple(expected), rel=1e-6)
    assert result["r_sample_95"] == pytest.approx((1 / expected.high, 1 / expected.low), rel=1e-6)
    assert metrics.gam_from_errors(a / N, b / N, b / N, a / N)["r_sample_95"] is None


def test_the_interval_of_r_test_goes_by_the_test_images():
    low, high = metrics.gam_from_errors(0.3, 0.2, 0.1, 0.1, n=N, n_test=100)["r_test_95"]
    assert (low, high) == pytest.approx(tuple(relative_risk(30, 100, 20, 100).confidence_interval()), rel=1e-6)


def test_intervals_of_zero_counts_hold_the_ratio():
    result = metrics.gam_from_errors(0, 0, 0.1, 0, n=100)
    assert result["r_test_95"] == (0, math.inf)
    low, high = result["r_sample_95"]  # 10 of 100 against none: half a count stands for none
    expected = 10 / 0.5 * math.exp(-1.959964 * math.sqrt(1 / 10 + 1 / 0.5 - 2 / 100))
    assert (low, high) == (pytest.approx(expected), math.inf)
    assert metrics.gam_from_errors(0, 0, 0, 0.1, n=100)["r_sample_95"] == (0, pytest.approx(1 / expected))


@pytest.mark.parametrize("rates, named", [((1.1, 0, 0, 0), "e1_test"), ((0, -0.1, 0, 0), "e2_test"),
                                          ((0, 0, math.nan, 0), "e1_fake"), ((0, 0, 0, 2), "e2_fake")])  # fmt: skip
def test_impossible_rates_are_refused(rates, named):
    with pytest.raises(ValueError, match=named):
        metrics.gam_from_errors(*rates)
    with pytest.raises(ValueError, match="tolerance"):
        metrics.gam_from_errors(0.1, 0.1, 0.1, 0.1, tolerance=-1)


def test_gam_finds_the_four_error_rates():
    a = Player("a", 1, {0: 0.20, 1: 0.5, 2: 0.10})
    b = Player("b", 2, {0: 0.25, 1: 0.40, 2: 0.5})
    result = metrics.gam(a, b, real(), n=N)
    rates = {"e1_test": 0.20, "e2_test": 0.25, "e1_fake": 0.10, "e2_fake": 0.40}
    assert {name: result[name] for name in rates} == pytest.approx(rates)
    assert result["r_test"] == pytest.approx(0.8) and result["r_sample"] == pytest.approx(0.25)
    assert result["winner"] == "M1"  # D1 takes fewer of G2's samples for real than D2 of G1's
    assert metrics.gam(b, a, real(), n=N)["winner"] == "M2"
    assert result["r_sample_95"] == pytest.approx(tuple(relative_risk(100, N, 400, N).confidence_interval()), rel=1e-6)


def test_a_run_without_a_discriminator_gets_one_error():
    a, vae = Player("a", 1, {0: 0.2, 1: 0.5, 2: 0.058}), Player("vae", 2)
    for result in (metrics.gam(a, vae, real(), n=N), metrics.gam(vae, a, real(), n=N)):
        assert result["error"] == pytest.approx(0.058) and result["winner"] is None
    with pytest.raises(metrics.InputError, match="neither"):
        metrics.gam(vae, vae, real(), n=N)


def test_labels_reach_conditional_players_only():
    rates = {0: 0.2, 1: 0.1, 2: 0.1}
    labels = torch.arange(N) % 3 + 4
    a, b, free = Player("a", 1, rates, True), Player("b", 2, rates, True), Player("free", 2, rates)
    metrics.gam(a, b, real(labels=labels), n=N, test_labels=labels)
    seen = a.labels_seen[0]
    assert seen.shape == (N,) and set(seen.tolist()) == {4, 5, 6}
    free.conditional, free.logits, free.labels_seen = False, None, []
    with pytest.raises(metrics.InputError, match="draws without labels"):
        metrics.gam(a, free, real(), n=N, test_labels=labels)
    with pytest.raises(metrics.InputError, match="label"):
        metrics.gam(a, b, real(), n=N)
    judge, drawer = Player("judge", 1, rates), Player("drawer", 2, None, True)
    assert metrics.gam(judge, drawer, real(), n=N, test_labels=labels)["error"] == pytest.approx(0.1)
    assert judge.labels_seen == [None] and drawer.labels_seen[0].shape == (N,)


def test_the_test_images_are_shuffled_and_may_be_fewer_than_the_samples():
    labels = torch.arange(N) % 3 + 4
    a, b = Player("a", 1, {0: 0.2, 1: 0.5, 2: 0.1}, True), Player("b", 2, {0: 0.3, 1: 0.2, 2: 0.5}, True)
    some = metrics.gam(a, b, real(labels=labels), n=500, test_labels=labels)  # the errors stand first
    assert some["e1_test"] == pytest.approx(0.2, abs=0.05) and some["e2_test"] == pytest.approx(0.3, abs=0.05)
    few = metrics.gam(a, b, real(100, labels[:100]), n=N, test_labels=labels[:100])
    assert few["r_test_95"] == pytest.approx(tuple(relative_risk(20, 100, 30, 100).confidence_interval()), rel=1e-6)
    assert few["r_sample_95"] == pytest.approx(tuple(relative_risk(100, N, 200, N).confidence_interval()), rel=1e-6)


def test_a_logit_of_nought_calls_nothing_real():
    undecided, vae = Player("a", 1, {}), Player("vae", 2)
    undecided.logits = lambda x, labels=None: torch.zeros(len(x))
    assert metrics.error_rates([undecided, vae], real(), n=N) == ([1, None], [[0, 0], [None, None]])


def test_other_image_shapes_are_refused():
    a, b = Player("a", 1, {0: 0.1, 1: 0.1, 2: 0.1}), Player("wide", 2, {0: 0.1, 1: 0.1, 2: 0.1}, width=3)
    with pytest.raises(metrics.InputError, match="wide draws images of another shape .*1x1x3 against 1x1x2"):
        metrics.gam(a, b, real(), n=N)


def test_command_line_prints_every_pair(monkeypatch, tmp_path, capsys):
    players = {
        "gran1": Player("gran1", 1, {0: 0.2, 1: 0.4, 2: 0.5, 3: 0.3, 4: 0.347}),
        "gran3": Player("gran3", 2, {0: 0.2, 1: 0.2, 2: 0.4, 3: 0.25, 4: 0.106}),
        "gran5": Player("gran5", 3, {0: 0.4, 1: 0.2, 2: 0.2, 3: 0.4, 4: 0.01}),
        "vae": Player("vae", 4),
    }
    monkeypatch.setattr(metrics, "open_source", lambda text, device: players[text])
    images = real()
    monkeypatch.setattr(metrics.data, "load", lambda *a, **k: (images, torch.zeros(N, dtype=torch.int64)))
    file = tmp_path / "gam.json"
    metrics.main(["gam", *players, "--n", str(2 * N), "--json", str(file), "--device", "cpu"])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80, out
    lines = [line.split() for line in out.splitlines()]
    low, high = relative_risk(1000, 2 * N, 400, 2 * N).confidence_interval()
    assert ["gran1", "vs.", "gran3", "1", "2.5", f"{low:.3g}", "to", f"{high:.3g}", "gran3"] in lines
    assert any(line[:5] == ["gran1", "vs.", "gran5", "0.5", "1.5"] and line[-1] == "tie" for line in lines)
    assert ["gran1", "vs.", "vae", "error", "0.347"] in lines and ["gran3", "vs.", "vae", "error", "0.106"] in lines
    assert "wins: gran3 1, gran1 0, gran5 0" in out and "cycle" in out and "2000 samples a run, 1000 test images" in out
    content = json.loads(file.read_text())
    assert len(content["battles"]) == 6 and content["error_rates"]["fake"][0][3] == pytest.approx(0.347)
    assert content["battles"][0]["winner"] == "M2" and content["wins"] == {"gran1": 0, "gran3": 1, "gran5": 0}
    of_test = relative_risk(200, N, 200, N).confidence_interval()
    assert content["battles"][0]["r_test_95"] == pytest.approx(tuple(of_test), rel=1e-6) and content["n_test"] == N


def test_command_line_needs_two_runs_and_a_discriminator(monkeypatch, capsys):
    monkeypatch.setattr(metrics, "open_source", lambda text, device: Player(text, 1))
    monkeypatch.setattr(metrics.data, "load", lambda *a, **k: (real(), torch.zeros(N, dtype=torch.int64)))
    for runs, said in ((["a"], "at least two"), (["a", "b"], "none of a, b has a discriminator")):
        with pytest.raises(SystemExit) as stop:
            metrics.main(["gam", *runs])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and said in error and error.count("\n") == 1
