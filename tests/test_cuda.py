"""The scripts and measures on a card, against the CPU; without a card, the CPU against itself.

Values, graphs, waits and memory need a card to mean something: tests/gpu_day.sh runs this file on
one. Elsewhere the same lines run on the CPU, so that they are known to work.
"""

import argparse
import contextlib
import importlib
import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

import data
import metrics

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLAGS = {
    "gran": "--steps 3", "draw_gan": "--steps 4", "dcrw": "--steps 4", "dcgan": "--width 16",
    "de_gan": "--vae-iters 2", "vae": "",
}
CASES = [(script, FLAGS[script]) for script in FLAGS] + [
    ("draw_gan", "--objective draw-gan --steps 4 --warm-up 2"), ("dcgan", "--objective wgan"),
    ("dcgan", "--conditional --width 16"), ("vae", "--objective aae"), ("vae", "--objective info"),
]


@pytest.fixture(autouse=True)
def full_precision():
    """No TF32: products are compared with the CPU's."""
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("data") / "noise", np.random.default_rng(0)
    for i in range(80):
        place = folder / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(place / f"{i}.png")
    return folder


def train(script, flags, pictures, out, iters, *more, resume=False, device=DEVICE):
    argv = ["--iters", iters, "--log-every", 1000, "--sample-every", 1000, *more]
    if resume:
        argv += ["--resume", out]
    else:
        argv += ["--dataset", pictures, "--data-dir", pictures.parent, "--device", device,
                 "--out", out, "--batch-size", 8, *flags.split()]
        argv += [] if "--amp" in more else ["--no-amp"]
    with contextlib.redirect_stdout(io.StringIO()):
        importlib.import_module(script).main([str(arg) for arg in argv])
    return metrics.load_checkpoint(out)


def alike(a, b, share=0.99):
    """Weights of two runs agree within rounding; Adam makes whole steps of gradients near 0."""
    for name, state in a["nets"].items():
        for key, value in state.items():
            close = torch.isclose(b["nets"][name][key].float(), value.float(), rtol=1e-2, atol=1e-3)
            assert close.float().mean() >= share, (name, key)


def moments(checkpoint):
    """{network: its gradients' first moments, or roots of the second}: of one update, gradients."""
    found = {}
    for name, optimiser in checkpoint["optimisers"].items():
        parts = [state["exp_avg"] if "exp_avg" in state else state["square_avg"].sqrt()
                 for state in optimiser["state"].values()]
        if parts:
            found[name] = torch.cat([part.flatten().cpu() for part in parts])
    return found


@pytest.mark.parametrize("precision, most", [("--no-amp", 1e-4), ("--amp", 2e-2)])
@pytest.mark.parametrize("script, flags", CASES)
def test_gradients_are_those_of_the_cpu(script, flags, precision, most, pictures, tmp_path,
                                        monkeypatch):
    """Of all networks, after one update at a rate near 0, with noise drawn on the CPU.

    bfloat16 is compared with float32, by the loss: its gradients differ by more than its rounding.
    """
    def on_the_cpu(draw):
        def drawn(*size, device=None, generator=None, **more):
            return draw(*size, generator=generator, **more).to(device or "cpu")
        return drawn

    for name in ("randn", "rand", "randint"):
        monkeypatch.setattr(torch, name, on_the_cpu(getattr(torch, name)))
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.randn(x.shape).to(x))
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda name: None)  # no TF32
    rates = ["--lr", 1e-12] if script in ("vae", "dcrw") else ["--lr-g", 1e-12, "--lr-d", 1e-12]
    iters = 3 if script == "de_gan" else 1  # 2 of the VAE
    rates += ["--lr-vae", 1e-12] if script == "de_gan" else []
    here, there = (
        train(script, flags.replace("--warm-up 2", "--warm-up 1"), pictures, tmp_path / name,
              iters + ("draw-gan" in flags), *rates, amp, device=device)
        for name, device, amp in (("here", "cpu", "--no-amp"), ("there", DEVICE, precision)))
    losses = [np.genfromtxt(tmp_path / name / "log.csv", delimiter=",")[-1][1:-1]
              for name in ("here", "there")]
    np.testing.assert_allclose(*losses, rtol=most, atol=most)
    one, two = moments(here), moments(there)
    assert one and one.keys() == two.keys()
    for name in one if precision == "--no-amp" else ():
        assert (one[name] - two[name]).norm() <= most * one[name].norm(), name


@pytest.mark.parametrize("script, flags", CASES)
def test_a_graph_trains_as_plain_updates_do(script, flags, pictures, tmp_path):
    """And a run that is resumed, as an unbroken one."""
    graph = train(script, flags, pictures, tmp_path / "graph", 20)
    plain = train(script, flags, pictures, tmp_path / "plain", 20, "--no-graph")
    alike(graph, plain)
    train(script, flags, pictures, tmp_path / "parts", 10)
    alike(graph, train(script, flags, pictures, tmp_path / "parts", 20, resume=True))


@pytest.mark.parametrize("script, flags", CASES)
def test_no_update_waits_for_the_device(script, flags, pictures, tmp_path, monkeypatch):
    """Any wait in updates 13 to 29 is an error: no line is printed there."""
    run, count = data.captured, itertools.count(1)

    def guarded(*args):
        for sums in run(*args):
            step = next(count)
            if DEVICE == "cuda" and step in (13, 29):
                torch.cuda.set_sync_debug_mode("error" if step == 13 else "default")
            yield sums

    monkeypatch.setattr(data, "captured", guarded)
    try:
        train(script, flags, pictures, tmp_path / "run", 30)
    finally:
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def test_measures_compute_what_they_do_on_the_cpu():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(200, 1, 8, 8, generator=generator) for _ in range(2))
    half = [part for rows in (x, y) for part in rows.chunk(2)]
    real_train, real_test, fake_train, fake_test = half
    for measure in (
        lambda a, b, *_: metrics.fid(a.flatten(1), b.flatten(1)),
        lambda a, b, *_: metrics.mmd(a, b),
        lambda a, b, *_: metrics.rdd(a, b)["mean"],
        lambda a, *_: metrics.intrinsic_dimension(a, k=10),
        lambda a, b, *h: metrics.knn_misclassification(h[0], h[2], h[1], h[3])["balanced"],
        lambda a, b, *h: metrics.bayes_misclassification(h[0], h[2], h[1], h[3])["balanced"],
    ):
        parts = (x, y, real_train, real_test, fake_train, fake_test)
        there = measure(*(part.to(DEVICE) for part in parts))
        assert there == pytest.approx(measure(*parts), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("dataset, steps", [("lsun-church", 5), ("imagenet", 5)])
def test_grans_large_networks_fit(dataset, steps):
    """One update at the papers' sizes, on a card; elsewhere the shapes alone."""
    import gran

    device = torch.device(DEVICE if DEVICE == "cuda" else "meta")
    with device:
        nets = gran.build(argparse.Namespace(dataset=dataset, channels=3, size=64, steps=steps,
                                             noise="once", tie=False))
    G, D = (net.to(memory_format=torch.channels_last) for net in nets.values())
    z = G.draw_z(100, device=device)
    if device.type == "meta":
        assert D(G(z)).shape == (100,)
        return
    optimisers = [data.optimiser(net, 1e-4) for net in (G, D)]
    x = torch.rand(100, 3, 64, 64, device=device)
    losses = gran.update(G, D, *optimisers, x, z, torch.autocast("cuda", torch.bfloat16))
    print(f"{dataset}: peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    assert losses.isfinite().all()
