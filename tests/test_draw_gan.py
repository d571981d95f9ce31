"""DRAW and DRAW-GAN against their equations, torch.distributions and quadrature; about 10 s."""

import argparse
import contextlib
import csv
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import data
import draw_gan

PLAIN = contextlib.nullcontext()  # no autocast


def params(g_x=0.0, g_y=0.0, variance=1.0, delta=1.0, gamma=1.0):
    logs = [math.log(v) for v in (variance, delta, gamma)]
    return torch.tensor([[g_x, g_y, *logs]], dtype=torch.float64)


# ---- the attention -------------------------------------------------------------------------------


def filters_by_hand(row, N, S):
    """DRAW's eqs. 19 to 26, a number at a time -> F_x, F_y (N, S), gamma."""
    g_x, g_y, log_variance, log_delta, log_gamma = row
    delta, filters = (S - 1) / max(N - 1, 1) * math.exp(log_delta), []
    for g in (g_x, g_y):
        rows = []
        for i in range(1, N + 1):
            mu = (S + 1) / 2 * (g + 1) + (i - N / 2 - 0.5) * delta
            row = [math.exp(-((a - mu) ** 2) / 2 / math.exp(log_variance)) for a in range(1, S + 1)]
            rows.append([value / sum(row) for value in row])
        filters.append(torch.tensor(rows, dtype=torch.float64))
    return *filters, math.exp(log_gamma)


@pytest.mark.parametrize("N, S", [(4, 9), (1, 8), (2, 28)])
def test_filters_are_normalised_gaussians_where_the_paper_says(N, S):
    torch.manual_seed(0)
    batch = torch.randn(6, 5, dtype=torch.float64) / 2
    found = zip(*draw_gan.filterbank(batch, N, S))
    for row, (F_x, F_y, gamma) in zip(batch.tolist(), found):
        expected = filters_by_hand(row, N, S)
        torch.testing.assert_close(F_x, expected[0])
        torch.testing.assert_close(F_y, expected[1])
        assert gamma.item() == pytest.approx(expected[2])


def test_a_window_of_stride_one_covers_the_image():
    """g~ = 0 and delta~ = 1: from the first pixel to the last, around the middle of 1..S."""
    g, delta, variance, gamma = draw_gan.window(params(variance=2, gamma=3), 5, 28)
    assert g.tolist() == [[14.5, 14.5]] and delta.item() == 27 / 4
    assert variance.item() == pytest.approx(2) and gamma.item() == pytest.approx(3)
    assert [14.5 + (i - 5 / 2 - 0.5) * 27 / 4 for i in (1, 5)] == [1, 28]


def test_rows_sum_to_one_wherever_the_window_is():
    far = [params(), params(-40, 90), params(variance=1e-8), params(delta=50), params(variance=1e6)]
    for filters in draw_gan.filterbank(torch.cat(far).float(), 5, 28)[:2]:
        torch.testing.assert_close(filters.sum(2), torch.ones(5, 5))


@pytest.mark.parametrize("C, N, S", [(1, 2, 28), (3, 5, 32), (2, 1, 8)])
def test_read_and_write_are_the_products_of_the_paper(C, N, S):
    torch.manual_seed(1)
    F_x, F_y, gamma = draw_gan.filterbank(torch.randn(4, 5), N, S)
    image, patch = torch.rand(4, C, S, S), torch.randn(4, C, N, N)
    glimpse, placed = torch.empty(4, C, N, N), torch.empty(4, C, S, S)
    for b in range(4):
        for c in range(C):
            glimpse[b, c] = gamma[b] * (F_y[b] @ image[b, c] @ F_x[b].T)
            placed[b, c] = F_y[b].T @ patch[b, c] @ F_x[b] / gamma[b]
    torch.testing.assert_close(draw_gan.read(image, F_x, F_y, gamma), glimpse)
    torch.testing.assert_close(draw_gan.write(patch, F_x, F_y, gamma), placed)


def test_x_is_horizontal():
    image = torch.zeros(1, 1, 28, 28, dtype=torch.float64)
    image[0, 0, 3, 20] = 1  # row 4, column 21, counted from 1
    filters = draw_gan.filterbank(params(21 / 14.5 - 1, 4 / 14.5 - 1, 0.01), 1, 28)
    assert draw_gan.read(image, *filters).item() == pytest.approx(1)


def test_a_full_size_window_reads_and_writes_the_image_itself():
    image = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    filters = draw_gan.filterbank(params(variance=0.01, gamma=2.5), 16, 16)
    torch.testing.assert_close(draw_gan.read(image, *filters), 2.5 * image)
    torch.testing.assert_close(draw_gan.write(2.5 * image, *filters), image)


# ---- DRAW ----------------------------------------------------------------------------------------


def lstm_by_hand(cell, x, h, s):
    gates = x @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.T + cell.bias_hh
    i, f, g, o = gates.chunk(4, 1)
    s = f.sigmoid() * s + i.sigmoid() * g.tanh()
    return o.sigmoid() * s.tanh(), s


def draw_by_hand(G, noise, x=None):
    """Eqs. 9 to 14, or 17 to 19, for an image at a time, with the weights of G."""
    S, results = G.shape[1], []
    for b in range(noise.shape[1]):
        c, h_enc, h_dec = G.c_0, G.h_enc_0[None], G.h_dec_0[None]
        s_enc = s_dec = torch.zeros_like(h_dec)
        canvases, divergence = [], []
        for noise_t in noise[:, b : b + 1]:
            z = noise_t
            if x is not None:
                r = torch.cat([x[b], x[b] - torch.sigmoid(c)])
                if G.N_read:
                    F_x, F_y, gamma = filters_by_hand(G.read_at(h_dec)[0].tolist(), G.N_read, S)
                    r = gamma * (F_y.float() @ r @ F_x.float().T)
                h_enc, s_enc = lstm_by_hand(G.enc, torch.cat([r.flatten()[None], h_dec], 1),
                                            h_enc, s_enc)
                mu, log_sigma = G.q(h_enc).chunk(2, 1)
                q = torch.distributions.Normal(mu, log_sigma.exp())
                z = q.mean + q.stddev * noise_t
                prior = torch.distributions.Normal(0, 1)
                divergence.append(torch.distributions.kl_divergence(q, prior).sum())
            h_dec, s_dec = lstm_by_hand(G.dec, z, h_dec, s_dec)
            w = G.patch(h_dec).view(G.shape[0], G.N_write or S, -1)
            if G.N_write:
                F_x, F_y, gamma = filters_by_hand(G.write_at(h_dec)[0].tolist(), G.N_write, S)
                w = F_y.float().T @ w @ F_x.float() / gamma
            c = c + w
            canvases.append(c)
        results.append((torch.stack(canvases), torch.tensor(divergence)))
    canvases, divergence = zip(*results)
    return torch.stack(canvases, 1), torch.stack(divergence, 1)


def small(C=1, S=8, Z=5, H=16, T=3, read=2, write=2, seed=0):
    torch.manual_seed(seed)
    G = draw_gan.Draw(C, S, Z, H, T, read, write)
    for start in (G.c_0, G.h_enc_0, G.h_dec_0):
        nn.init.normal_(start)
    return G


@pytest.mark.parametrize("C, S, read, write", [(1, 28, 2, 5), (3, 12, 3, 2), (3, 8, None, None)])
@torch.no_grad()
def test_draw_is_its_equations(C, S, read, write):
    G = small(C, S, 6, 16, 4, read, write)
    noise, x = G.draw_z(3), torch.rand(3, C, S, S)
    canvases, windows, divergence = G(noise, x)
    expected, expected_divergence = draw_by_hand(G, noise, x)
    torch.testing.assert_close(torch.stack(canvases), expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(divergence, expected_divergence)
    shapes = [[p if p is None else tuple(p.shape) for p in at] for at in windows]
    assert shapes == [[(3, 5) if read else None, (3, 5) if write else None]] * 4
    canvases, _, divergence = G(noise)
    assert divergence is None
    expected, _ = draw_by_hand(G, noise)
    torch.testing.assert_close(torch.stack(canvases), expected, atol=2e-5, rtol=1e-4)


def test_every_weight_has_a_gradient():
    G = small()
    canvases, _, divergence = G(G.draw_z(4), torch.rand(4, 1, 8, 8))
    (canvases[-1].square().mean() + divergence.mean()).backward()
    assert all(p.grad.any() for p in G.parameters())


def test_windows_start_over_the_whole_image():
    """Stride (S - 1) / N around the middle, sigma S / 4N to read and S / 2N to write."""
    G = draw_gan.Draw(1, 28, 6, 16, 3, 2, 5)
    for layer, N, sigma in ((G.read_at, 2, 3.5), (G.write_at, 5, 2.8)):
        bias = layer.bias.detach().clone()
        bias[:2] = 0
        g, delta, variance, _ = draw_gan.window(bias[None], N, 28)
        assert g.tolist() == [[14.5, 14.5]]
        assert delta.item() == pytest.approx(27 / N)
        assert variance.item() == pytest.approx(sigma**2)


def test_each_step_has_noise_of_its_own():
    G = small()
    noise = G.draw_z(2000)
    assert noise.shape == (3, 2000, 5) and G.draw_z(4, steps=7).shape == (7, 4, 5)
    for s, t in ((0, 1), (0, 2), (1, 2)):  # 5 standard errors of independent draws
        assert abs((noise[s] * noise[t]).mean()) < 5 / math.sqrt(2000 * 5)
    other = noise[:, :9].clone()
    other[1] = 0
    for seen in (torch.rand(9, 1, 8, 8), None):
        same = [torch.equal(*pair) for pair in zip(G(noise[:, :9], seen)[0], G(other, seen)[0])]
        assert same == [True, False, False]


def test_a_posterior_that_is_the_prior_draws_the_prior():
    """mu = 0 and sigma = 1 at every step: no nats, and the canvases of the prior."""
    G = small()
    nn.init.zeros_(G.q.weight), nn.init.zeros_(G.q.bias)
    noise = G.draw_z(4)
    canvases, _, divergence = G(noise, torch.rand(4, 1, 8, 8))
    torch.testing.assert_close(canvases, G(noise)[0])
    assert divergence.shape == (3, 4) and not divergence.any()


def test_states_and_windows_stay_in_float32_under_autocast():
    G = small(1, 28, 20, 64, 5, 2, 5)
    noise, x = G.draw_z(6), torch.rand(6, 1, 28, 28)
    exact, _, exact_kl = G(noise, x)
    with torch.autocast("cpu", torch.bfloat16):
        canvases, windows, divergence = G(noise, x)
        drawn = G(noise)[0]
    assert {v.dtype for v in (*canvases, *drawn, *windows[-1], divergence)} == {torch.float32}
    torch.testing.assert_close(canvases[-1], exact[-1], atol=0.05, rtol=0.05)
    torch.testing.assert_close(divergence, exact_kl, atol=0.05, rtol=0.05)


def test_kl_is_torchs():
    torch.manual_seed(3)
    mu, log_sigma = torch.randn(10, 4, 7), torch.randn(10, 4, 7)
    q, p = torch.distributions.Normal(mu, log_sigma.exp()), torch.distributions.Normal(0, 1)
    expected = torch.distributions.kl_divergence(q, p).sum(2)
    torch.testing.assert_close(draw_gan.kl(mu, log_sigma), expected)


def test_reconstruction_is_minus_the_log_likelihood():
    canvas, x = torch.randn(4, 3, 6, 6) * 3, (torch.rand(4, 3, 6, 6) < 0.3).float()
    expected = -torch.distributions.Bernoulli(logits=canvas).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(draw_gan.reconstruction_loss(canvas, x), expected)
    blank = draw_gan.reconstruction_loss(torch.zeros(2, 1, 28, 28), torch.ones(2, 1, 28, 28))
    torch.testing.assert_close(blank, torch.full((2,), 784 * math.log(2)))


@pytest.mark.parametrize("steps, z_dim", [(2, 1), (1, 2)])
def test_the_bound_is_never_below_the_negative_log_likelihood(steps, z_dim):
    """Two latents, images of 2 x 2: -log p(x) by quadrature. The trained bound is just above it."""
    torch.manual_seed(4)
    G = draw_gan.Draw(1, 2, z_dim, 8, steps, None, None).double()
    optimiser = torch.optim.Adam(G.parameters(), 0.02)
    toys = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 1, 0]], dtype=torch.float64)
    toys = toys.view(3, 1, 2, 2)
    for _ in range(150):  # so that q is of use
        x = toys[torch.randint(3, (60,))]
        draw_gan.update_draw(G, optimiser, x, G.draw_z(60).double(), PLAIN)

    line = torch.linspace(-7, 7, 71, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)  # (71^2, 2)
    weights = torch.distributions.Normal(0, 1).log_prob(points).sum(1).exp() * 0.2**2
    noise = points.T[:, :, None] if steps == 2 else points[None]  # (T, n, Z)
    total = 0
    with torch.no_grad():
        drawn = G(noise)[0][-1]
        for x in torch.tensor(list(np.ndindex(2, 2, 2, 2)), dtype=torch.float64).view(16, 1, 2, 2):
            x = x.expand(len(points), 1, 2, 2)
            nll = -(weights @ (-draw_gan.reconstruction_loss(drawn, x)).exp()).log()
            canvases, _, divergence = G(noise, x)
            nats = draw_gan.reconstruction_loss(canvases[-1], x) + divergence.sum(0)
            gap = weights @ nats - nll
            assert gap >= 0
            if (x[0] == toys).flatten(1).all(1).any():
                assert gap < 0.6  # a KL without its constant, Z / 2 a step, would be below 0
            total += (-nll).exp()
    assert total.item() == pytest.approx(1, abs=1e-6)  # p sums to 1: nll is the true one


@torch.no_grad()
def test_bound_counts_nats_per_image_and_step():
    G, x = small(), (torch.rand(7, 1, 8, 8) < 0.3).float()
    reconstruction, divergence = draw_gan.bound({"G": G}, x, seed=5, batch_size=4)
    generator = torch.Generator().manual_seed(5)
    parts = [draw_by_hand(G, G.draw_z(len(part), generator=generator), part) for part in x.split(4)]
    canvas = torch.cat([canvases[-1] for canvases, _ in parts])
    expected = F.binary_cross_entropy(torch.sigmoid(canvas), x, reduction="sum") / 7
    assert reconstruction == pytest.approx(expected.item(), rel=1e-4)
    expected = torch.cat([kl for _, kl in parts], 1).mean(1)
    torch.testing.assert_close(divergence.float(), expected)
    assert draw_gan.bound({"G": G}, x, seed=5, batch_size=4)[0] == reconstruction


# ---- DRAW-GAN ------------------------------------------------------------------------------------


def test_adversarial_losses():
    zero = torch.zeros(9)
    assert draw_gan.d_loss(zero, zero, zero).item() == pytest.approx(3 * math.log(2))
    assert draw_gan.g_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    real, rec, prior = torch.randn(3, 50).double()
    D = torch.sigmoid
    expected = -(D(real).log() + (1 - D(rec)).log() + (1 - D(prior)).log()).mean()
    torch.testing.assert_close(draw_gan.d_loss(real, rec, prior), expected)
    expected = -(D(rec).log() + D(prior).log()).mean()
    torch.testing.assert_close(draw_gan.g_loss(rec, prior), expected)
    assert draw_gan.d_loss(torch.tensor([-1e4]), *torch.full((2, 1), 1e4)) == 3e4


def test_feature_loss_is_a_gaussian_likelihood():
    rec, real = torch.randn(2, 6, 3, 5, 5)
    gaussian = torch.distributions.Normal(rec, 1)
    expected = (gaussian.log_prob(rec) - gaussian.log_prob(real)).flatten(1).sum(1)
    torch.testing.assert_close(draw_gan.feature_loss(rec, real), expected)


def test_r1_is_half_the_squared_gradient():
    torch.manual_seed(6)
    linear, x = nn.Linear(12, 1), torch.rand(5, 12)
    expected = 0.5 * linear.weight.square().sum()
    torch.testing.assert_close(draw_gan.r1_penalty(linear, x), expected)

    D, x = draw_gan.Discriminator(1, 8).double(), torch.rand(4, 1, 8, 8, dtype=torch.float64)
    penalty, weight, eps = draw_gan.r1_penalty(D, x), D.conv2.weight, 1e-6
    penalty.backward()
    with torch.no_grad():  # its gradient, by differences
        weight[3, 2, 1, 1] += eps
    difference = (draw_gan.r1_penalty(D, x) - penalty).item() / eps
    assert weight.grad[3, 2, 1, 1].item() == pytest.approx(difference, rel=1e-3)


@pytest.mark.parametrize("C, S, maps", [(1, 28, 14), (3, 32, 16), (3, 30, 15)])
def test_discriminator(C, S, maps):
    D, x = draw_gan.Discriminator(C, S), torch.rand(4, C, S, S)
    assert D(x).shape == (4,) and D.features(x).shape == (4, 32, maps, maps)
    first = F.conv2d(2 * x - 1, D.conv1.weight, D.conv1.bias, stride=2, padding=2)
    torch.testing.assert_close(D.features(x), F.leaky_relu(first, 0.2))
    twin = draw_gan.Discriminator(C, S).to(memory_format=torch.channels_last)
    twin.load_state_dict(D.state_dict())
    torch.testing.assert_close(twin(x), D(x))


# ---- updates -------------------------------------------------------------------------------------


def same_weights(nets, expected):
    for a, b in zip(nets, expected):
        for (name, p), q in zip(a.named_parameters(), b.parameters()):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5, msg=name)


def networks():
    G, D = small(seed=7), draw_gan.Discriminator(1, 8)
    for layer in (G.q, G.dec, G.patch, D.conv1, D.conv2):
        for p in layer.parameters():  # so that noise and images matter
            p.data *= 4
    return G, D, torch.optim.SGD(G.parameters(), 0.01), torch.optim.SGD(D.parameters(), 0.01)


@pytest.mark.parametrize("clip", [0.5, 1e6])
def test_an_update_of_draw(monkeypatch, clip):
    """The gradient of the bound, cut to the norm CLIP; the losses are those before the update."""
    monkeypatch.setattr(draw_gan, "CLIP", clip)
    (G, _, opt, _), (twin, _, _, _) = networks(), networks()
    noise, x = torch.randn(3, 6, 5), (torch.rand(6, 1, 8, 8) < 0.3).float()
    losses = draw_gan.update_draw(G, opt, x, noise, PLAIN)
    canvases, _, kl = twin(noise, x)
    nats = F.binary_cross_entropy_with_logits(canvases[-1], x, reduction="sum") / 6, kl.sum() / 6
    torch.testing.assert_close(losses, torch.stack([sum(nats), *nats]).detach())
    assert not losses.requires_grad
    gradients = torch.autograd.grad(sum(nats), list(twin.parameters()))
    norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
    assert (norm > clip) == (clip == 0.5)
    for p, g in zip(twin.parameters(), gradients):
        p.data -= 0.01 * g * min(1, clip / norm)
    same_weights([G], [twin])


@pytest.mark.parametrize("like, r1", [("pixel", 0), ("feature", 0), ("pixel", 2.0)])
def test_an_update_of_draw_gan(monkeypatch, like, r1):
    """Eq. 20 for D, then eq. 21 for DRAW with the new D; both parts of D's gradient reach DRAW."""
    monkeypatch.setattr(draw_gan, "CLIP", 1e6)
    nets, twins = networks(), networks()
    (G, D, opt_G, _), bce = twins, F.binary_cross_entropy_with_logits
    noise, x = torch.randn(3, 12, 5), torch.rand(6, 1, 8, 8)
    losses = draw_gan.update_draw_gan(*nets, x, noise, PLAIN, like, gamma=3, weight=7, r1=r1)
    assert all(p.requires_grad for p in nets[1].parameters()) and not losses.requires_grad

    one, zero = torch.ones(6), torch.zeros(6)
    canvases, _, kl = G(noise[:, :6], x)
    rec, prior = canvases[-1].sigmoid(), G(noise[:, 6:])[0][-1].sigmoid()
    logits = D(x), D(rec), D(prior)
    loss_D = bce(logits[0], one) + bce(logits[1], zero) + bce(logits[2], zero)
    real = x.clone().requires_grad_()
    slope, = torch.autograd.grad(D(real).sum(), real, create_graph=True)
    gradients = torch.autograd.grad(loss_D + r1 / 2 * slope.square().sum() / 6,
                                    list(D.parameters()), retain_graph=True)
    for p, g in zip(D.parameters(), gradients):
        p.data -= 0.01 * g
    loss_G = bce(D(rec), one) + bce(D(prior), one)
    pixels = bce(canvases[-1], x, reduction="sum") / 6
    features = (D.features(rec) - D.features(x)).square().sum() / 2 / 6
    likeness = pixels if like == "pixel" else features
    opt_G.zero_grad()
    (kl.sum() / 6 + 3 * likeness + 7 * loss_G).backward()
    opt_G.step()
    same_weights(nets[:2], [G, D])
    chances = [torch.sigmoid(logit).mean() for logit in logits]
    expected = torch.stack([loss_D, loss_G, likeness, kl.sum() / 6, *chances])
    torch.testing.assert_close(losses, expected.detach())


# ---- pictures and runs ---------------------------------------------------------------------------


def test_boxes_are_drawn_where_the_window_is():
    """A window over the middles of columns 3 to 7 and rows 5 to 9 (from 1), enlarged 4 times."""
    middle = params(5 / 5.5 - 1, 7 / 5.5 - 1, 1.0, 2 / 4.5).float()  # g = (5, 7), N = 3, stride 2
    windows = [(torch.cat([params(-9, -9).float(), middle]), 3, "lime"), (None, 2, "red")]
    pictures = draw_gan.boxed(torch.zeros(2, 1, 10, 10), windows, zoom=4)
    assert pictures.shape == (2, 3, 40, 40) and not pictures[0].any()  # that one is outside
    red, green, _ = pictures[1]
    rows, columns = green.nonzero().unbind(1)
    edges = columns.min(), columns.max(), rows.min(), rows.max()
    assert [edge.item() for edge in edges] == [10, 26, 18, 34]  # 4 (mu - 0.5)
    assert not red.any()


def test_canvases_and_samples():
    nets, batch = {"G": small(3)}, {"batch_size": 10}
    seeded = lambda seed=3: torch.Generator().manual_seed(seed)
    frames = draw_gan.canvases(nets, 6, generator=seeded(), **batch)
    assert frames.shape == (3, 6, 3, 8, 8) and frames.min() >= 0 and frames.max() <= 1
    longer = draw_gan.canvases(nets, 6, steps=5, generator=seeded(), **batch)
    assert longer.shape == (5, 6, 3, 8, 8)
    assert torch.equal(draw_gan.sample(nets, 6, generator=seeded(), **batch), frames[-1])
    assert not torch.equal(draw_gan.sample(nets, 6, generator=seeded(4), **batch), frames[-1])
    many = draw_gan.sample(nets, 25, generator=seeded(), **batch)
    assert len(many) == len(many.unique(dim=0)) == 25  # no batch is there twice
    assert torch.equal(many[:6], frames[-1])
    assert torch.equal(many, draw_gan.canvases(nets, 25, generator=seeded(), **batch)[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty grey and forty colour images of 12 px."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for kind, shape in (("grey", (12, 12)), ("colour", (12, 12, 3))):
        (root / kind).mkdir()
        for k in range(40):
            pixels = rng.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(root / kind / f"{k}.png")
    return root


def run(folder, out, *more):
    """Trains a small DRAW for two updates -> the rows of log.csv and the checkpoint."""
    small = ["--steps", "3", "--hidden", "16", "--z-dim", "4", "--write", "3"]
    small += ["--batch-size", "8", "--device", "cpu", "--no-amp"]
    places = ["--dataset", str(folder), "--data-dir", str(out), "--out", str(out / "run")]
    draw_gan.main([*places, "--iters", "2", *small, *more])
    with open(out / "run/log.csv") as file:
        rows = list(csv.DictReader(file))
    return rows, torch.load(out / "run/checkpoint.pt", weights_only=True)


@pytest.mark.parametrize("kind, more", [
    ("grey", ""), ("colour", "--no-attention"), ("grey", "--objective draw-gan --warm-up 1"),
])
def test_a_run_leaves_its_pictures_and_its_bound(folder, tmp_path, capsys, kind, more):
    _rows, saved = run(folder / kind, tmp_path, *more.split())
    out, text = tmp_path / "run", capsys.readouterr().out
    for name in ("samples/000002.png", "steps.png", "reconstructions.png"):
        assert (out / name).stat().st_size > 0
    for name in ("steps.gif", "reconstructions.gif"):
        with Image.open(out / name) as film:
            assert film.n_frames == 3
    with open(out / "bound.csv") as file:
        (row,) = csv.DictReader(file)
    nats = {name: float(value) for name, value in row.items()}
    assert nats["step"] == 2 and nats["images"] == 4  # one image in ten is held out
    assert nats["bound"] == pytest.approx(nats["reconstruction"] + nats["kl"], abs=0.01)
    printed = float(text.partition("held-out images: ")[2].split()[0])
    assert printed == pytest.approx(nats["bound"], abs=0.01)
    grey_levels = kind == "colour" or "draw-gan" in more
    assert ("pixels as probabilities" in text) == grey_levels

    nets = draw_gan.build(argparse.Namespace(**saved["args"]))
    assert set(nets) == set(saved["nets"]) == ({"G", "D"} if "draw-gan" in more else {"G"})
    nets["G"].load_state_dict(saved["nets"]["G"])
    seeded = torch.Generator().manual_seed(0)
    drawn = draw_gan.sample(nets, 64, generator=seeded, batch_size=8)
    with Image.open(out / "samples/000002.png") as picture:
        corner = torch.tensor(np.array(picture))[2:14, 2:14].permute(2, 0, 1) / 255
    assert (corner - drawn[0]).abs().max() < 0.01  # samples are from the prior


def test_rows_of_updates_after_the_checkpoint_leave_bound_csv(tmp_path):
    file, args = tmp_path / "bound.csv", argparse.Namespace(batch_size=4, binarise=True)
    file.write_text("step,images,bound,reconstruction,kl\n2,4,3,2,1\n4,4,3,2,1\n6,4,3,2,1\n")
    draw_gan.write_bound({"G": small()}, args, tmp_path, 4, torch.zeros(4, 1, 8, 8))
    _head, first, last = file.read_text().splitlines()
    assert first == "2,4,3,2,1" and last.startswith("4,4,") and last != "4,4,3,2,1"


def test_the_first_canvas_starts_as_the_mean_image(folder, tmp_path):
    _, saved = run(folder / "colour", tmp_path, "--lr-g", "1e-9")
    images, _ = data.load(str(folder / "colour"), tmp_path)
    mean = images.double().mean(0).div(255).float()
    torch.testing.assert_close(saved["nets"]["G"]["c_0"].sigmoid(), mean, atol=1e-6, rtol=0)


@pytest.mark.parametrize("more, expected", [
    ("", ["draw 0/1"] * 6),
    ("--objective draw-gan --epochs 2", ["draw grey"] * 5 + ["game grey"]),
    ("--objective draw-gan --warm-up 2", ["draw grey"] * 2 + ["game grey"] * 4),
    ("--objective draw-gan --warm-up 0", ["game grey"] * 6),
])
def test_the_schedule(folder, tmp_path, monkeypatch, more, expected):
    """The bound, then the game after two thirds (or --warm-up); rates fall to a twentieth."""
    calls, rates, bounds = [], [], []
    kind = lambda x: "0/1" if x.unique().numel() == 2 else "grey"

    def update(name, losses, *opts, x):
        calls.append(f"{name} {kind(x)}")
        rates.append([opt.param_groups[0]["lr"].item() for opt in opts])
        assert [opt.param_groups[0]["betas"][0] for opt in opts] == [0.9, 0.5][:len(opts)]
        return torch.ones(losses)

    monkeypatch.setattr(draw_gan, "update_draw", lambda G, opt, x, noise, *_:
                        update("draw", 3, opt, x=x))
    monkeypatch.setattr(draw_gan, "update_draw_gan", lambda G, D, opt_G, opt_D, x, noise, *_:
                        update("game", 7, opt_G, opt_D, x=x))
    monkeypatch.setattr(draw_gan, "write_bound", lambda *args: bounds.append(kind(args[-1])))
    rows, _ = run(folder / "grey", tmp_path, "--epochs", "1", "--iters", "6", *more.split())
    assert calls == expected and bounds == calls[0].split()[1:]
    planned = 8 if "--epochs 2" in more else 6  # an epoch is 4 updates: 36 images in batches of 8
    for step, (lr_g, *lr_d) in enumerate(rates):
        assert lr_g == pytest.approx(2e-3 * max(1 - step / planned, 0.05))
        assert lr_d in ([], [pytest.approx(6e-4 * max(1 - step / planned, 0.05))])
    assert all(bool(row.get("loss_d")) == (call[:4] == "game")
               for call, row in zip(calls[:1] + calls[-1:], rows[:1] + rows[-1:]))


def test_d_is_not_trained_during_the_warm_up(folder, tmp_path):
    _, saved = run(folder / "grey", tmp_path, "--objective", "draw-gan", "--warm-up", "2")
    torch.manual_seed(0)
    new = draw_gan.build(argparse.Namespace(**saved["args"]))
    for name, untrained in (("D", True), ("G", False)):
        weights = saved["nets"][name]
        assert untrained == all(torch.equal(weights[k], v) for k, v in
                                new[name].state_dict().items() if k != "c_0")


@pytest.mark.parametrize("more", ["--gamma 0", "--warm-up -1", "--r1 -1", "--likeness ssim"])
def test_bad_flags_are_refused(capsys, more):
    with pytest.raises(SystemExit) as stop:
        draw_gan.parse_args(more.split())
    assert stop.value.code == 2 and more.split()[0] in capsys.readouterr().err
