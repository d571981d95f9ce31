"""DRAW and DRAW-GAN against their equations, torch.distributions and quadrature; about 10 s."""

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


@pytest.mark.parametrize("C, N, S", [(1, 4, 9), (2, 1, 8), (3, 2, 28)])
def test_the_attention_is_its_equations(C, N, S):
    torch.manual_seed(0)
    params = torch.randn(6, 5, dtype=torch.float64) / 2
    image, patch = torch.rand(6, C, S, S).double(), torch.randn(6, C, N, N).double()
    filters = draw_gan.filterbank(params, N, S)
    glimpses, placed = draw_gan.read(image, *filters), draw_gan.write(patch, *filters)
    for b, row in enumerate(params.tolist()):
        F_x, F_y, gamma = filters_by_hand(row, N, S)
        torch.testing.assert_close([part[b] for part in filters[:2]], [F_x, F_y])
        torch.testing.assert_close(glimpses[b], gamma * F_y @ image[b] @ F_x.T)
        torch.testing.assert_close(placed[b], F_y.T @ patch[b] @ F_x / gamma)


def params(g_x=0.0, g_y=0.0, variance=1.0, delta=1.0, gamma=1.0):
    logs = [math.log(v) for v in (variance, delta, gamma)]
    return torch.tensor([[g_x, g_y, *logs]])


def test_rows_sum_to_one_wherever_the_window_is():
    far = [params(), params(-40, 90), params(variance=1e-8), params(delta=50), params(variance=1e6)]
    for filters in draw_gan.filterbank(torch.cat(far), 5, 28)[:2]:
        torch.testing.assert_close(filters.sum(2), torch.ones(5, 5))


# ---- DRAW ----------------------------------------------------------------------------------------


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
                h_enc, s_enc = G.enc(torch.cat([r.flatten()[None], h_dec], 1), (h_enc, s_enc))
                mu, log_sigma = G.q(h_enc).chunk(2, 1)
                q = torch.distributions.Normal(mu, log_sigma.exp())
                z = q.mean + q.stddev * noise_t
                prior = torch.distributions.Normal(0, 1)
                divergence.append(torch.distributions.kl_divergence(q, prior).sum())
            h_dec, s_dec = G.dec(z, (h_dec, s_dec))
            w = G.patch(h_dec).view(G.shape[0], G.N_write or S, -1)
            if G.N_write:
                F_x, F_y, gamma = filters_by_hand(G.write_at(h_dec)[0].tolist(), G.N_write, S)
                w = F_y.float().T @ w @ F_x.float() / gamma
            c = c + w
            canvases.append(c)
        results.append((torch.stack(canvases), torch.tensor(divergence)))
    return [torch.stack(parts, 1) for parts in zip(*results)]


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
    expected = draw_by_hand(G, noise)[0]
    torch.testing.assert_close(torch.stack(canvases), expected, atol=2e-5, rtol=1e-4)


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
    noise = small().draw_z(2000)
    assert noise.shape == (3, 2000, 5) and small().draw_z(4, steps=7).shape == (7, 4, 5)
    for s, t in ((0, 1), (0, 2), (1, 2)):  # 5 standard errors of independent draws
        assert abs((noise[s] * noise[t]).mean()) < 5 / math.sqrt(2000 * 5)


def test_states_and_windows_stay_in_float32_under_autocast():
    G = small(1, 28, 20, 64, 5, 2, 5)
    noise, x = G.draw_z(6), torch.rand(6, 1, 28, 28)
    exact, _, exact_kl = G(noise, x)
    with torch.autocast("cpu", torch.bfloat16):
        canvases, windows, divergence = G(noise, x)
    assert {v.dtype for v in (*canvases, *windows[-1], divergence)} == {torch.float32}
    torch.testing.assert_close(canvases[-1], exact[-1], atol=0.05, rtol=0.05)
    torch.testing.assert_close(divergence, exact_kl, atol=0.05, rtol=0.05)


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
    linear = nn.Linear(12, 1)
    expected = 0.5 * linear.weight.square().sum()
    torch.testing.assert_close(draw_gan.r1_penalty(linear, torch.rand(5, 12)), expected)


@pytest.mark.parametrize("C, S, maps", [(1, 28, 14), (3, 32, 16), (3, 30, 15)])
def test_discriminator(C, S, maps):
    D, x = draw_gan.Discriminator(C, S), torch.rand(4, C, S, S)
    assert D(x).shape == (4,) and D.features(x).shape == (4, 32, maps, maps)
    first = F.conv2d(2 * x - 1, D.conv1.weight, D.conv1.bias, stride=2, padding=2)
    torch.testing.assert_close(D.features(x), F.leaky_relu(first, 0.2))


# ---- updates -------------------------------------------------------------------------------------


def same_weights(net, expected):
    found, expected = (dict(part.named_parameters()) for part in (net, expected))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


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
    assert all(g.any() for g in gradients)  # every weight learns
    norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
    assert (norm > clip) == (clip == 0.5)
    for p, g in zip(twin.parameters(), gradients):
        p.data -= 0.01 * g * min(1, clip / norm)
    same_weights(G, twin)


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
    same_weights(nets[0], G)
    same_weights(nets[1], D)
    chances = [torch.sigmoid(logit).mean() for logit in logits]
    expected = torch.stack([loss_D, loss_G, likeness, kl.sum() / 6, *chances])
    torch.testing.assert_close(losses, expected.detach())


# ---- pictures and runs ---------------------------------------------------------------------------


def test_boxes_are_drawn_where_the_window_is():
    """A window over the middles of columns 3 to 7 and rows 5 to 9 (from 1), enlarged 4 times."""
    middle = params(5 / 5.5 - 1, 7 / 5.5 - 1, 1.0, 2 / 4.5)  # g = (5, 7), N = 3, stride 2
    windows = [(torch.cat([params(-9, -9), middle]), 3, "lime"), (None, 2, "red")]
    pictures = draw_gan.boxed(torch.zeros(2, 1, 10, 10), windows, zoom=4)
    assert pictures.shape == (2, 3, 40, 40) and not pictures[0].any()  # that one is outside
    red, green, _ = pictures[1]
    rows, columns = green.nonzero().unbind(1)
    edges = columns.min(), columns.max(), rows.min(), rows.max()
    assert [edge.item() for edge in edges] == [10, 26, 18, 34]  # 4 (mu - 0.5)
    assert not red.any()


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
def test_a_run_leaves_its_reconstructions_and_its_bound(folder, tmp_path, capsys, kind, more):
    run(folder / kind, tmp_path, *more.split())
    out, text = tmp_path / "run", capsys.readouterr().out
    assert (out / "reconstructions.png").stat().st_size > 0
    with Image.open(out / "reconstructions.gif") as film:
        assert film.n_frames == 3
    with open(out / "bound.csv") as file:
        (row,) = csv.DictReader(file)
    nats = {name: float(value) for name, value in row.items()}
    held_out, _ = data.load(str(folder / kind), tmp_path, split="test")
    assert nats["step"] == 2 and nats["images"] == len(held_out)
    assert nats["bound"] == pytest.approx(nats["reconstruction"] + nats["kl"], abs=0.01)
    printed = float(text.partition("held-out images: ")[2].split()[0])
    assert printed == pytest.approx(nats["bound"], abs=0.01)
    grey_levels = kind == "colour" or "draw-gan" in more
    assert ("pixels as probabilities" in text) == grey_levels


def test_rows_of_updates_after_the_checkpoint_leave_bound_csv(folder, tmp_path):
    run(folder / "grey", tmp_path)
    with open(tmp_path / "run/bound.csv", "a") as file:
        file.write("9,4,3,2,1\n")
    draw_gan.main(["--resume", str(tmp_path / "run"), "--iters", "3"])
    rows = (tmp_path / "run/bound.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "2", "3"]


def test_the_first_canvas_starts_as_the_mean_image(folder, tmp_path):
    _, saved = run(folder / "colour", tmp_path, "--lr-g", "1e-9")
    images, _ = data.load(str(folder / "colour"), tmp_path)
    mean = images.double().mean(0).div(255).float()
    torch.testing.assert_close(saved["nets"]["G"]["c_0"].sigmoid(), mean, atol=1e-6, rtol=0)


@pytest.mark.parametrize("more, warm_up", [
    ("", 6), ("--objective draw-gan --epochs 2", 5), ("--objective draw-gan --warm-up 2", 2),
    ("--objective draw-gan --warm-up 0", 0),
])
def test_the_schedule(folder, tmp_path, monkeypatch, more, warm_up):
    """The bound, then the game after two thirds (or --warm-up); rates fall to a twentieth."""
    seen, loss = [], draw_gan.reconstruction_loss
    monkeypatch.setattr(draw_gan, "reconstruction_loss", lambda c, x: seen.append(x) or loss(c, x))
    flags = ["--epochs", "1", "--iters", "6", "--log-every", "1", *more.split()]
    rows, saved = run(folder / "grey", tmp_path, *flags)
    assert [bool(row.get("loss_d")) for row in rows] == [step > warm_up for step in range(1, 7)]
    assert all((x * (1 - x)).any() == ("draw-gan" in more) for x in seen)  # DRAW's pixels: 0 or 1
    share = 1 - 5 / (8 if "--epochs 2" in more else 6)  # an epoch is 4 updates
    rates = {"G": (4e-3, 0.9, 6), "D": (6e-4, 0.5, 6 - warm_up)}
    for name, optimiser in saved["optimisers"].items():
        rate, beta_1, updates = rates[name]
        group, states = optimiser["param_groups"][0], optimiser["state"].values()
        assert float(group["lr"]) == pytest.approx(rate * max(share, 0.05))
        assert group["betas"][0] == beta_1
        assert {float(state["step"]) for state in states} == {updates}
