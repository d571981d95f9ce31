"""DCRW against its equations, torch.distributions and exact likelihoods; about 10 s."""

import argparse
import contextlib
import csv
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.distributions import Bernoulli, Normal, kl_divergence
from torchvision.transforms.functional import to_tensor

import dcrw
import metrics


def small(read=3, channels=1, size=6, z_dim=4, steps=3, write=2, hidden=7, noise="per-step"):
    """A net with random weights and biases, so that no term of an equation hides behind a zero."""
    torch.manual_seed(0)
    net = dcrw.DCRW(channels, size, z_dim, steps, read, write, hidden, noise)
    with torch.no_grad():
        net.h_0.normal_()
        net.c_0.normal_()
    return net


# ---- attention -----------------------------------------------------------------------------------


def filters_by_hand(params, N, S):
    """Eqs. 13 to 20 one number at a time: (g~_x, g~_y, log variance, log delta~, log gamma)."""
    g_x, g_y, log_variance, log_delta, log_gamma = params
    delta = (S - 1) / (N - 1) * math.exp(log_delta)
    both = []
    for g in (g_x, g_y):
        rows = []
        for i in range(1, N + 1):
            mu = (S + 1) / 2 * (g + 1) + (i - N / 2 - 0.5) * delta
            squares = [(a - mu) ** 2 for a in range(1, S + 1)]
            row = [math.exp(-square / (2 * math.exp(log_variance))) for square in squares]
            rows.append([value / sum(row) for value in row])
        both.append(torch.tensor(rows))
    return *both, math.exp(log_gamma)


def test_a_window_that_has_left_the_image_stays_finite():
    outside, _, _ = dcrw.filterbank(torch.tensor([[9.0, -9.0, -9.0, 0.0, 0.0]]), 5, 9)
    torch.testing.assert_close(outside.sum(2), torch.ones(1, 5))


@pytest.mark.parametrize("N", [5, 7])
def test_the_first_windows_cover_the_image_and_keep_its_values(N):
    """Filters near the middles of N equal parts; 1 reads as 1, and inside the image 1 writes 1."""
    net, h = dcrw.DCRW(1, 28, 10, 10, read=N, write=N), torch.zeros(1, 256)
    F_x, F_y, gamma = dcrw.filterbank(net.read_at(h), N, 28)
    centres = (F_x[0] * torch.arange(1, 29)).sum(1)
    middles = torch.tensor([0.5 + (i + 0.5) * 28 / N for i in range(N)])
    assert torch.equal(F_x, F_y) and (centres - middles).abs().max() < 1.5
    glimpse = dcrw.read(torch.ones(1, 1, 28, 28), F_x, F_y, gamma)
    torch.testing.assert_close(glimpse, torch.ones(1, 1, N, N))
    update = dcrw.write(torch.ones(1, 1, N, N), *dcrw.filterbank(net.write_at(h), N, 28))
    assert (update[0, 0, 6:22, 6:22] - 1).abs().max() < 0.2


# ---- model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("read, seen, features", [("7", 2, 256), ("none", 1, 3136)])
def test_sizes_of_table_I(read, seen, features):
    """Conv 3x3x32, pool, conv 3x3x64, pool; LSTM of 256; 7 x 7 read, 5 x 5 write."""
    args = dcrw.parse_args(["--read", read] if read == "none" else [])  # 7 is the default
    args.channels, args.size = 1, 28
    net, side = dcrw.build(args)["DCRW"], 28 if read == "none" else 7
    assert net.features(torch.zeros(3, seen, side, side)).shape == (3, features)
    state = 256 * (read != "none")               # eq. 9 has h_dec, eq. 29 does not
    assert net.q.weight.shape == (20, features + state) and net.rnn.weight_hh.shape == (1024, 256)
    convs = [net.cnn[i].weight.shape for i in (0, 3)]
    assert convs == [(32, seen, 3, 3), (64, 32, 3, 3)]
    assert net.write_what.weight.shape == (25, 256)


def by_hand(net, x, noise):
    """Eqs. 4 to 12 and 29 to 32 out of the weights alone -> c_1..c_T, mu, log sigma."""
    w = net.state_dict()

    def cnn(x):
        for layer in ("cnn.0", "cnn.3"):
            x = F.relu(F.conv2d(x, w[f"{layer}.weight"], w[f"{layer}.bias"], padding=1))
            odd = (0, x.shape[3] % 2, 0, x.shape[2] % 2)  # the last window of an odd side is cut
            x = F.max_pool2d(F.pad(x, odd, value=-math.inf), 2)
        return x.permute(0, 2, 3, 1).flatten(1)

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def windows(params, N):
        filters = [filters_by_hand(row, N, x.shape[3]) for row in params.tolist()]
        X, Y, gamma = zip(*filters)
        return torch.stack(X), torch.stack(Y), torch.tensor(gamma)

    B = len(x)
    h, s = w["h_0"][0].expand(B, -1), w["h_0"][1].expand(B, -1)
    c, out = w["c_0"].expand_as(x), []
    for eps in noise:
        if net.N_read is None:
            mu, log_sigma = linear("q", cnn(x)).chunk(2, 1)
        else:
            X, Y, gamma = windows(linear("read_at", h), net.N_read)
            both = torch.cat([x, x - 1 / (1 + torch.exp(-c))], 1)
            r = torch.einsum("b,bnh,bchw,bmw->bcnm", gamma, Y, both, X)
            mu, log_sigma = linear("q", torch.cat([cnn(r), h], 1)).chunk(2, 1)
        z = mu + torch.exp(log_sigma) * eps
        h, s = net.rnn(z, (h, s))
        X, Y, gamma = windows(linear("write_at", h), net.N_write)
        patch = linear("write_what", h).unflatten(1, (x.shape[1], net.N_write, net.N_write))
        c = c + torch.einsum("b,bnh,bcnm,bmw->bchw", 1 / gamma, Y, patch, X)
        out.append((c, mu, log_sigma))
    return [torch.stack(parts) for parts in zip(*out)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("read", [3, None])
def test_equations_4_to_12_and_29_to_32(read, channels):
    net = small(read, channels)
    x, noise = torch.rand(5, channels, 6, 6), torch.randn(3, 5, 4)
    with torch.no_grad():
        expected = by_hand(net, x, noise)
        for ours, theirs in zip(net(x, noise, every_step=True), expected):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(net(x, noise)[0], expected[0][-1], rtol=1e-4, atol=1e-5)


def test_noise_is_drawn_at_every_step_or_once():
    noise = small().draw_noise(2000)
    for s, t in [(0, 1), (1, 2), (0, 2)]:
        assert abs((noise[s] * noise[t]).mean()) < 5 / math.sqrt(8000)  # independent
    assert noise.square().mean() == pytest.approx(1, abs=5 * math.sqrt(2 / (3 * 8000)))
    once = small(noise="once").draw_noise(2000)
    assert once.shape == (3, 2000, 4) and torch.equal(once, once[:1].expand_as(once))


def test_the_lstm_stays_out_of_cudas_autocast():
    """There autocast would hand an LSTM cell bfloat16 states."""
    net, inside = small(), []
    net.rnn.register_forward_pre_hook(lambda *_: inside.append(torch.is_autocast_enabled("cuda")))
    torch.set_autocast_enabled("cuda", True)
    try:
        net(torch.rand(2, 1, 6, 6), net.draw_noise(2))
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert inside == [False] * net.steps


def test_without_attention_the_encoder_looks_once_and_its_kl_counts_at_every_step():
    net, looks = small(None, steps=5), []
    net.cnn.register_forward_hook(lambda *_: looks.append(1))
    images = torch.randint(256, (6, 1, 6, 6), dtype=torch.uint8)
    _, l_z, each = dcrw.bound({"DCRW": net}, images)
    assert len(looks) == 1 and each == pytest.approx([each[0]] * 5)
    assert l_z == pytest.approx(5 * each[0])


# ---- losses --------------------------------------------------------------------------------------


def test_kl_equation_26_and_the_constant_of_27():
    T, Z = 10, 4
    mu, log_sigma = torch.randn(2, T, 8, Z, dtype=torch.float64)
    expected = kl_divergence(Normal(mu, log_sigma.exp()), Normal(0.0, 1.0)).sum(2)
    torch.testing.assert_close(dcrw.kl(mu, log_sigma), expected)
    printed = 0.5 * (mu**2 + (2 * log_sigma).exp() - 2 * log_sigma).sum((0, 2)) - T / 2
    torch.testing.assert_close(printed - T * (Z - 1) / 2, expected.sum(0))


def test_reconstruction_equation_25():
    """784 log 2 when nothing is known; a grey pixel is the mean over black and white ones."""
    c, b = torch.randn(5, 2, 6, 6), torch.randint(2, (5, 2, 6, 6)).float()
    expected = -Bernoulli(logits=c).log_prob(b).sum((1, 2, 3))
    torch.testing.assert_close(dcrw.reconstruction(c, b), expected)
    grey = dcrw.reconstruction(torch.zeros(1, 1, 28, 28), torch.rand(1, 1, 28, 28)).item()
    assert grey == pytest.approx(784 * math.log(2))
    mean = 0.25 * dcrw.reconstruction(c, 0 * c + 1) + 0.75 * dcrw.reconstruction(c, 0 * c)
    torch.testing.assert_close(dcrw.reconstruction(c, 0 * c + 0.25), mean)


@pytest.mark.parametrize("read", [2, None])
@torch.no_grad()
def test_the_bound_is_never_below_the_exact_nll(read):
    """Two steps, one latent number, images of 2 x 2: -log p(x) by quadrature over z_1 and z_2."""
    torch.manual_seed(0)
    net = dcrw.DCRW(1, 2, 1, steps=2, read=read, write=2, hidden=16)
    x = torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]])
    x = x.repeat(4, 1).view(16, 1, 2, 2)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    with torch.enable_grad():
        for _ in range(200):
            dcrw.update(net, optimiser, x, net.draw_noise(16), contextlib.nullcontext())

    grid = torch.linspace(-7, 7, 201)
    z = torch.cartesian_prod(grid, grid).T  # (2, n)
    log_prior = Normal(0.0, 1.0).log_prob(z).sum(0) + 2 * math.log(14 / 200)
    c = net.c_0 + net.all_written(z[..., None]).sum(0)
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).view(16, 1, 1, 2, 2)
    p = (Bernoulli(logits=c).log_prob(every).sum((2, 3, 4)) + log_prior).logsumexp(1)
    assert p.exp().sum() == pytest.approx(1, abs=1e-4)
    nll = -p[(x.flatten(1) @ torch.tensor([8.0, 4, 2, 1])).long()]

    many = x.repeat(2000, 1, 1, 1)
    c, mu, log_sigma = net(many, net.draw_noise(len(many)))
    l_z = dcrw.kl(mu, log_sigma).sum(0)
    draws = (dcrw.reconstruction(c, many) + l_z).view(2000, 16)
    mean, error = draws.mean(0), draws.std(0) / math.sqrt(2000)
    assert (mean > nll - 5 * error).all()
    assert l_z.mean() > 0.3                              # the latents tell something,
    assert math.log(4) < mean.mean() < nll.mean() + 0.3  # and the bound is near


def test_bound_is_a_mean_over_images():
    net = small(steps=2)
    images = torch.randint(256, (7, 1, 6, 6), dtype=torch.uint8)
    l_x, l_z, each = dcrw.bound({"DCRW": net}, images, batch_size=4, seed=5)
    generator, total, steps = torch.Generator().manual_seed(5), 0, torch.zeros(2)
    for part in (images[:4] / 255, images[4:] / 255):
        noise = torch.randn(2, len(part), 4, generator=generator)
        with torch.no_grad():
            c, mu, log_sigma = by_hand(net, part, noise)
        p = torch.sigmoid(c[-1].double())
        total -= (part * p.log() + (1 - part) * (1 - p).log()).sum().item()
        steps += kl_divergence(Normal(mu, log_sigma.exp()), Normal(0.0, 1.0)).sum((1, 2))
    assert l_x == pytest.approx(total / 7, rel=1e-4)
    assert each == pytest.approx((steps / 7).tolist(), rel=1e-4)
    assert l_z == pytest.approx(sum(each))


# ---- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("read, scale", [(3, 1), (3, 1e4), (None, 1)])
def test_an_update_is_a_clipped_step_down_the_bound(read, scale):
    """By plain SGD, whose step is the gradient itself: of norm 5 where it was longer."""
    net = small(read)
    with torch.no_grad():
        net.write_what.weight.mul_(scale)
    x, noise = torch.rand(5, 1, 6, 6), net.draw_noise(5)
    c, mu, log_sigma = net(x, noise)
    L_x, L_z = dcrw.reconstruction(c, x).mean(), dcrw.kl(mu, log_sigma).sum(0).mean()
    gradients = torch.autograd.grad(L_x + L_z, list(net.parameters()))
    assert all(g.any() for g in gradients)  # every weight learns
    norm = torch.cat([g.flatten() for g in gradients]).norm().item()
    assert scale == 1 or norm > 50
    before = [p.detach().clone() for p in net.parameters()]
    losses = dcrw.update(net, torch.optim.SGD(net.parameters(), 1.0), x, noise,
                         contextlib.nullcontext())  # fmt: skip
    assert not losses.requires_grad
    torch.testing.assert_close(losses, torch.stack([L_x, L_z]).detach())
    for p, old, g in zip(net.parameters(), before, gradients):
        torch.testing.assert_close(old - p, g * min(1, 5 / norm), rtol=1e-3, atol=1e-4 * scale)


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    """A folder of pictures of 8 px with one white column, in the first half or the second."""
    folder = tmp_path_factory.mktemp("data") / "stripes"
    for (split, n), half in itertools.product((("train", 40), ("test", 10)), range(2)):
        (folder / split / "ab"[half]).mkdir(parents=True)
        for i in range(n // 2):
            picture = Image.new("L", (8, 8))
            left = 4 * half + i % 4
            picture.paste(255, (left, 0, left + 1, 8))
            picture.save(folder / split / "ab"[half] / f"{i}.png")
    return folder


def train(stripes, out, *more):
    common = ["--dataset", stripes, "--data-dir", stripes.parent, "--out", out, "--device", "cpu",
              "--batch-size", "10", "--steps", "3", "--z-dim", "3"]  # fmt: skip
    dcrw.main([str(flag) for flag in [*common, *more]])
    return metrics.load_checkpoint(out)


def test_the_first_canvas_is_the_mean_image_and_the_rate_falls(stripes, tmp_path):
    """c_0 has moved by the rate at most; of 40 planned updates 31 are made."""
    first = train(stripes, tmp_path / "a", "--iters", "1", "--lr", "0.01", "--no-amp")
    mean = torch.full((1, 8, 8), math.log((1 / 8) / (7 / 8)))
    torch.testing.assert_close(first["nets"]["DCRW"]["c_0"], mean, rtol=0, atol=0.011)
    for iters, rate in (("31", 0.01 * 0.25), ("40", 0.01 * 0.05)):
        found = train(stripes, tmp_path / iters, "--epochs", "10", "--iters", iters, "--lr", "0.01")
        assert float(found["optimisers"]["DCRW"]["param_groups"][0]["lr"]) == pytest.approx(rate)


@pytest.mark.parametrize("read, iters", [("3", 100), ("none", 200)])
def test_a_run_learns_and_says_its_bound(stripes, tmp_path, read, iters, capsys):
    """It starts with the mean image: L_x is the entropy of 64 pixels, each white in 1 of 8."""
    train(stripes, tmp_path / "run", "--read", read, "--iters", iters, "--lr", "0.003")
    with open(tmp_path / "run/log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    start = 64 * Bernoulli(torch.tensor(1 / 8)).entropy().item()
    assert float(rows[0]["loss_x"]) == pytest.approx(start, rel=0.05)
    assert float(rows[-1]["loss_x"]) + float(rows[-1]["loss_z"]) < 0.9 * start
    assert "held-out, 10 images: L_x" in capsys.readouterr().out
    with open(tmp_path / "run/bound.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    nats = {name: float(value) for name, value in row.items()}
    assert nats["bound"] == pytest.approx(nats["reconstruction"] + nats["kl"], abs=2e-4)
    assert nats["step"] == iters and nats["bound"] < start
    with Image.open(tmp_path / "run/reconstructions.png") as image:
        columns = to_tensor(image)[0, 5::10, 2:10]  # a row of pixels of each held-out image
    assert set(columns.argmax(1).tolist()) == set(range(8))  # of both classes


@pytest.mark.parametrize("read", [3, None])
def test_canvases_come_from_the_prior_alone(read, tmp_path):
    """Neither the encoder nor q is run. In steps.png each of them has a row, each step a column."""
    net = small(read)
    for layer in (net.cnn[0], net.cnn[3], net.q):
        layer.weight.data.fill_(math.nan)
    z = torch.randn(3, 10, 4, generator=torch.Generator().manual_seed(2))
    frames = dcrw.canvases({"DCRW": net}, 10, None, torch.Generator().manual_seed(2), 10)
    (h, s), c = net.h_0[:, None].expand(-1, 10, -1), net.c_0
    for t in range(3):
        h, s = net.rnn(z[t], (h, s))
        c = c + net.written(h)
        torch.testing.assert_close(frames[t], torch.sigmoid(c))
    (tmp_path / "samples").mkdir()
    held_out = torch.randint(256, (10, 1, 6, 6), dtype=torch.uint8)
    args = argparse.Namespace(batch_size=10, seed=2)
    dcrw.draw_pictures({"DCRW": net}, args, held_out, tmp_path, 40)
    steps = to_tensor(Image.open(tmp_path / "steps.png"))[:1]
    for t in range(3):
        fourth = steps[:, 8 * 3 + 2 : 8 * 3 + 8, 8 * t + 2 : 8 * t + 8]
        torch.testing.assert_close(fourth, frames[t, 3], rtol=0, atol=1 / 255)
