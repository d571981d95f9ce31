"""DRAW and DRAW-GAN against their equations, torch.distributions, scipy and quadrature; about 15 s."""

import csv
import math

import bench_train
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import nn
from torchvision.utils import make_grid

import data
import draw_gan
import metrics


def attention(g_x=0.0, g_y=0.0, variance=1.0, delta=1.0, gamma=1.0):
    return torch.tensor([[g_x, g_y, math.log(variance), math.log(delta), math.log(gamma)]], dtype=torch.float64)


# The filters ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("N", [1, 2, 5, 12])
def test_filters_are_centred_where_the_paper_says(N):
    """mu_i = g + (i - N/2 - 0.5) delta with i and pixels from 1; the mean of a discrete Gaussian of sigma 1 is its mu."""
    S, g_x, g_y, stride = 40, 19.3, 21.8, 1.6
    params = attention(g_x / 20.5 - 1, g_y / 20.5 - 1, 1.0, stride / (39 / max(N - 1, 1)))  # g = (S + 1) / 2 (g~ + 1)
    a = torch.arange(1, S + 1, dtype=torch.float64)
    for filters, g in zip(draw_gan.filterbank(params, N, S), (g_x, g_y)):
        means = filters[0] @ a
        assert means[0].item() == pytest.approx(g - (N - 1) / 2 * stride, abs=1e-6)
        assert means[-1].item() == pytest.approx(g + (N - 1) / 2 * stride, abs=1e-6)
        spread = filters[0] @ a.square() - means.square()
        torch.testing.assert_close(spread, torch.ones(N, dtype=torch.float64), atol=1e-5, rtol=0)


def test_a_window_of_stride_one_covers_the_image():
    """g~ = 0 and delta~ = 1: from the first pixel to the last, in the middle of pixels 1..S."""
    g, delta, variance, gamma = draw_gan.window(attention(variance=2, gamma=3), 5, 28)
    assert g.tolist() == [[14.5, 14.5]] and delta.item() == 27 / 4
    assert variance.item() == pytest.approx(2) and gamma.item() == pytest.approx(3)
    first_to_last = g[0, 0] + (torch.tensor([1, 5]) - 2.5 - 0.5) * delta[0]
    assert first_to_last.tolist() == [1, 28]


def test_filters_are_normalised_gaussians():
    torch.manual_seed(0)
    params, N, S = torch.randn(6, 5, dtype=torch.float64), 4, 9
    F_x, F_y, gamma = draw_gan.filterbank(params, N, S)
    for b, (g_x, g_y, log_variance, log_delta, log_gamma) in enumerate(params.tolist()):
        for filters, g in ((F_x, g_x), (F_y, g_y)):
            for i in range(1, N + 1):
                mu = (S + 1) / 2 * (g + 1) + (i - N / 2 - 0.5) * (S - 1) / (N - 1) * math.exp(log_delta)
                row = [math.exp(-((a - mu) ** 2) / 2 / math.exp(log_variance)) for a in range(1, S + 1)]
                expected = torch.tensor(row, dtype=torch.float64) / sum(row)
                torch.testing.assert_close(filters[b, i - 1], expected)
        assert gamma[b].item() == pytest.approx(math.exp(log_gamma))


def test_rows_sum_to_one_wherever_the_window_is():
    params = torch.cat([attention(), attention(-40, 90), attention(variance=1e-8), attention(delta=50), attention(0.3, 0.1, 1e6)])
    for filters in draw_gan.filterbank(params.float(), 5, 28)[:2]:
        torch.testing.assert_close(filters.sum(2), torch.ones(5, 5))


@pytest.mark.parametrize("C, N, S", [(1, 2, 28), (3, 5, 32), (2, 1, 8)])
def test_read_and_write_are_the_products_of_the_paper(C, N, S):
    torch.manual_seed(1)
    F_x, F_y, gamma = draw_gan.filterbank(torch.randn(4, 5), N, S)
    image, patch = torch.rand(4, C, S, S), torch.randn(4, C, N, N)
    glimpse = torch.einsum("bis,bcst,bjt->bcij", F_y, image, F_x) * gamma[:, :, None, None]
    spread = torch.einsum("bis,bcij,bjt->bcst", F_y, patch, F_x) / gamma[:, :, None, None]
    torch.testing.assert_close(draw_gan.read(image, F_x, F_y, gamma), glimpse)
    torch.testing.assert_close(draw_gan.write(patch, F_x, F_y, gamma), spread)


def test_x_is_horizontal():
    image = torch.zeros(1, 1, 28, 28, dtype=torch.float64)
    image[0, 0, 3, 20] = 1                                   # row 4 from the top, column 21 from the left, counted from 1
    filters = draw_gan.filterbank(attention(21 / 14.5 - 1, 4 / 14.5 - 1, 0.01), 1, 28)
    assert draw_gan.read(image, *filters).item() == pytest.approx(1)


def test_a_full_size_window_reads_and_writes_the_image_itself():
    image = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    filters = draw_gan.filterbank(attention(variance=0.01, gamma=2.5), 16, 16)
    torch.testing.assert_close(draw_gan.read(image, *filters), 2.5 * image)
    torch.testing.assert_close(draw_gan.write(draw_gan.read(image, *filters), *filters), image)


# DRAW -------------------------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """The DRAW paper's equations one by one, of torch's own LSTM cells and a linear layer for each thing; its attention is the benchmark's."""

    def __init__(self, C, S, Z, H, N_read, N_write):
        super().__init__()
        self.C, self.S, self.N_read, self.N_write = C, S, N_read, N_write
        self.enc = nn.LSTMCell(2 * C * (N_read or S) ** 2 + H, H)
        self.dec = nn.LSTMCell(Z, H)
        self.mu, self.log_sigma = nn.Linear(H, Z), nn.Linear(H, Z)
        self.read_at, self.write_at = nn.Linear(H, 5), nn.Linear(H, 5)
        self.patch = nn.Linear(H, C * (N_write or S) ** 2)
        self.c_0 = torch.randn(C, S, S)
        self.h_0 = torch.randn(2, H)

    def forward(self, noise, x=None):
        B = noise.shape[1]
        c, (h, h_dec) = self.c_0.expand(B, -1, -1, -1), (h.expand(B, -1) for h in self.h_0)
        cell, cell_dec, canvases, windows, divergence = torch.zeros_like(h), torch.zeros_like(h), [], [], []
        for noise_t in noise:
            z, looked, placed = noise_t, None, None
            if x is not None:
                r = torch.cat([x, x - torch.sigmoid(c)], 1)
                if self.N_read:
                    looked = self.read_at(h_dec)
                    r = bench_train.read(r, *bench_train.filterbank(looked, self.N_read, self.S))
                h, cell = self.enc(torch.cat([r.flatten(1), h_dec], 1), (h, cell))
                q = torch.distributions.Normal(self.mu(h), self.log_sigma(h).exp())
                z = q.mean + q.stddev * noise_t
                prior = torch.distributions.Normal(0, 1)
                divergence.append(torch.distributions.kl_divergence(q, prior).sum(1))
            h_dec, cell_dec = self.dec(z, (h_dec, cell_dec))
            w = self.patch(h_dec)
            if self.N_write:
                placed = self.write_at(h_dec)
                window = bench_train.filterbank(placed, self.N_write, self.S)
                w = bench_train.write(w.view(B, self.C, self.N_write, self.N_write), *window)
            c = c + w.view(B, self.C, self.S, self.S)
            canvases.append(c)
            windows.append((looked, placed))
        return canvases, windows, divergence


def twins(C, S, Z, H, T, N_read, N_write):
    """Ours and the plain one, with the same weights."""
    torch.manual_seed(2)
    plain, ours = Plain(C, S, Z, H, N_read, N_write), draw_gan.Draw(C, S, Z, H, T, N_read, N_write)
    with torch.no_grad():
        for mine, cell in ((ours.enc, plain.enc), (ours.dec, plain.dec)):
            order = torch.arange(4 * H).view(4, H)[[0, 1, 3, 2]].flatten()  # torch has the candidate before the output gate
            mine.weight.copy_(torch.cat([cell.weight_ih, cell.weight_hh], 1)[order])
            mine.bias.copy_((cell.bias_ih + cell.bias_hh)[order])
        hands = [plain.read_at] * bool(N_read) + [plain.write_at] * bool(N_write) + [plain.patch]
        for mine, layers in ((ours.q, [plain.mu, plain.log_sigma]), (ours.hands, hands)):
            mine.weight.copy_(torch.cat([layer.weight for layer in layers]))
            mine.bias.copy_(torch.cat([layer.bias for layer in layers]))
        ours.c_0.copy_(plain.c_0), ours.h_enc_0.copy_(plain.h_0[0]), ours.h_dec_0.copy_(plain.h_0[1])
    return ours, plain


@pytest.mark.parametrize("C, S, N_read, N_write", [(1, 28, 2, 5), (3, 12, 3, 2), (1, 12, None, None), (3, 8, None, None)])
def test_draw_is_its_equations(C, S, N_read, N_write):
    """Step t reads where the h_dec before it says, and writes where the h_dec after it says; without x nothing is read."""
    ours, plain = twins(C, S, 6, 16, 4, N_read, N_write)
    noise, x = ours.draw_z(5), torch.rand(5, C, S, S)
    for seen in (x, None):
        canvases, windows, divergence = ours(noise, seen)
        expected, expected_windows, expected_divergence = plain(noise, seen)
        torch.testing.assert_close(canvases, expected)
        torch.testing.assert_close(windows, expected_windows)
        if seen is not None:
            torch.testing.assert_close(divergence, torch.stack(expected_divergence))
    ours(noise, x)[0][-1].square().mean().backward()
    assert all(p.grad is not None for p in ours.parameters())


def test_windows_start_over_the_whole_image():
    """Stride (S - 1) / N about the middle, sigma S / 4N to read and S / 2N to write."""
    G = draw_gan.Draw(1, 28, 6, 16, 3, 2, 5)
    nn.init.zeros_(G.hands.weight)
    G.hands.bias.data[[0, 1, 5, 6]] = 0  # the middle, and not a little beside it
    _, ((looked, placed), *_), _ = G(G.draw_z(1), torch.rand(1, 1, 28, 28))
    for params, N, sigma in ((looked, 2, 3.5), (placed, 5, 2.8)):
        g, delta, variance, _ = draw_gan.window(params.detach(), N, 28)
        assert g.tolist() == [[14.5, 14.5]]
        assert delta.item() == pytest.approx(27 / N) and variance.item() == pytest.approx(sigma**2)


def test_noise_is_drawn_apart_at_every_step_and_used_there():
    G = draw_gan.Draw(1, 8, 5, 16, 3, 2, 2)
    noise = G.draw_z(2000)
    assert noise.shape == (3, 2000, 5)
    for s, t in ((0, 1), (0, 2), (1, 2)):
        assert abs((noise[s] * noise[t]).mean()) < 5 / math.sqrt(2000 * 5)  # 5 standard errors of independent draws
    x, other = torch.rand(2000, 1, 8, 8), noise.clone()
    other[1] = 0
    for seen in (x, None):
        (a1, a2, a3), (b1, b2, b3) = G(noise, seen)[0], G(other, seen)[0]
        assert torch.equal(a1, b1) and not torch.equal(a2, b2) and not torch.equal(a3, b3)


def test_posterior_of_the_prior_draws_the_prior():
    """mu = 0 and sigma = 1 at every step: no nats, and the canvases of the prior pass."""
    G = draw_gan.Draw(1, 8, 5, 16, 3, 2, 2)
    nn.init.zeros_(G.q.weight), nn.init.zeros_(G.q.bias)
    noise = G.draw_z(4)
    canvases, _, divergence = G(noise, torch.rand(4, 1, 8, 8))
    torch.testing.assert_close(canvases, G(noise)[0])
    assert divergence.shape == (3, 4) and not divergence.any()


def test_kl_is_torchs():
    torch.manual_seed(3)
    mu, log_sigma = torch.randn(10, 4, 7), torch.randn(10, 4, 7)
    q, p = torch.distributions.Normal(mu, log_sigma.exp()), torch.distributions.Normal(0, 1)
    torch.testing.assert_close(draw_gan.kl(mu, log_sigma), torch.distributions.kl_divergence(q, p).sum(2))


def test_reconstruction_is_minus_the_log_likelihood():
    canvas, x = torch.randn(4, 3, 6, 6) * 3, (torch.rand(4, 3, 6, 6) < 0.3).float()
    expected = -torch.distributions.Bernoulli(logits=canvas).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(draw_gan.reconstruction_loss(canvas, x), expected)
    blank = draw_gan.reconstruction_loss(torch.zeros(2, 1, 28, 28), torch.ones(2, 1, 28, 28))
    torch.testing.assert_close(blank, torch.full((2,), 784 * math.log(2)))


@pytest.mark.parametrize("steps, z_dim", [(2, 1), (1, 2)])
def test_the_bound_is_never_below_the_negative_log_likelihood(steps, z_dim):
    """Two latents, images of 2 x 2: -log p(x) by quadrature; trained, the bound is above it for all and near for the three."""
    torch.manual_seed(4)
    G = draw_gan.Draw(1, 2, z_dim, 8, steps, None, None).double()
    optimiser = torch.optim.Adam(G.parameters(), 0.02)
    toys = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 1, 0]], dtype=torch.float64).view(3, 1, 2, 2)
    for _ in range(150):  # so that q is of use, and the bound not far from the truth
        x = toys[torch.randint(3, (60,))]
        canvases, _, divergence = G(torch.randn(steps, 60, z_dim, dtype=torch.float64), x)
        optimiser.zero_grad()
        (draw_gan.reconstruction_loss(canvases[-1], x).mean() + divergence.sum(0).mean()).backward()
        optimiser.step()

    line = torch.linspace(-7, 7, 141, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)  # (141^2, 2)
    weights = torch.distributions.Normal(0, 1).log_prob(points).sum(1).exp() * 0.1**2
    noise = points.T[:, :, None] if steps == 2 else points[None]  # (T, n, Z)
    images = torch.tensor(list(np.ndindex(2, 2, 2, 2)), dtype=torch.float64).view(16, 1, 2, 2)
    total = 0
    with torch.no_grad():
        for x in images:
            x = x.expand(len(points), 1, 2, 2)
            likelihood = (-draw_gan.reconstruction_loss(G(noise)[0][-1], x)).exp()
            nll = -(weights @ likelihood).log()
            canvases, _, divergence = G(noise, x)
            gap = weights @ (draw_gan.reconstruction_loss(canvases[-1], x) + divergence.sum(0)) - nll
            assert gap >= 0
            if (x[0] == toys).flatten(1).all(1).any():
                assert gap < 0.6  # a KL without its constant, z_dim / 2 nats a step, would fall below
            total += (-nll).exp()
    assert total.item() == pytest.approx(1, abs=1e-6)  # p sums to one over the 16 images, so nll is the true one


def test_bound_counts_nats_per_image_and_step():
    ours, plain = twins(1, 8, 5, 16, 3, 2, 2)
    x = (torch.rand(7, 1, 8, 8) < 0.3).float()
    reconstruction, divergence = draw_gan.bound({"G": ours}, x, seed=5, batch_size=4)
    generator = torch.Generator().manual_seed(5)
    parts = [plain(ours.draw_z(len(part), generator=generator), part) for part in x.split(4)]
    canvas = torch.cat([canvases[-1] for canvases, _, _ in parts])
    expected = F.binary_cross_entropy(torch.sigmoid(canvas), x, reduction="sum") / 7
    assert reconstruction == pytest.approx(expected.item(), rel=1e-5)
    expected = torch.cat([torch.stack(kls) for _, _, kls in parts], 1).mean(1)
    torch.testing.assert_close(divergence.float(), expected)
    assert draw_gan.bound({"G": ours}, x, seed=5, batch_size=4)[0] == reconstruction


def test_state_and_attention_stay_in_float32_under_autocast(monkeypatch):
    seen = []
    for name in ("read", "write"):
        exact = getattr(draw_gan, name)
        monkeypatch.setattr(draw_gan, name, lambda *a, exact=exact: seen.append(exact(*a)) or seen[-1])
    G = draw_gan.Draw(1, 28, 20, 64, 5, 2, 5)
    noise, x = G.draw_z(6), torch.rand(6, 1, 28, 28)
    exact, _, exact_kl = G(noise, x)
    with torch.autocast("cpu", torch.bfloat16):
        canvases, windows, divergence = G(noise, x)
    assert {t.dtype for t in (*canvases, *windows[0], divergence, *seen)} == {torch.float32}
    torch.testing.assert_close(canvases[-1], exact[-1], atol=0.05, rtol=0.05)
    torch.testing.assert_close(divergence, exact_kl, atol=0.05, rtol=0.05)


# DRAW-GAN ---------------------------------------------------------------------------------------------------------------


def test_adversarial_losses():
    zero = torch.zeros(9)
    assert draw_gan.d_loss(zero, zero, zero).item() == pytest.approx(3 * math.log(2))
    assert draw_gan.g_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    real, rec, prior = torch.randn(3, 50) * 5
    bce, one, nought = F.binary_cross_entropy_with_logits, torch.ones(50), torch.zeros(50)
    torch.testing.assert_close(draw_gan.d_loss(real, rec, prior), bce(real, one) + bce(rec, nought) + bce(prior, nought))
    torch.testing.assert_close(draw_gan.g_loss(rec, prior), bce(rec, one) + bce(prior, one))
    assert draw_gan.d_loss(torch.tensor([-1e4]), torch.tensor([1e4]), torch.tensor([1e4])) == 3e4


def test_feature_loss_is_a_gaussian_likelihood():
    rec, real = torch.randn(2, 6, 30)
    gaussian = torch.distributions.Normal(rec, 1)
    expected = (gaussian.log_prob(rec) - gaussian.log_prob(real)).sum(1)  # the constant falls out
    torch.testing.assert_close(draw_gan.feature_loss(rec, real), expected)


@pytest.mark.parametrize("C, S", [(1, 28), (3, 32)])
def test_ssim_is_wangs(C, S):
    """Against the formula with scipy's filter (11 taps of sigma 1.5), whose inner part sees no border."""
    x = torch.rand(3, C, S, S)
    y = (x + 0.3 * torch.randn(3, C, S, S)).clamp(0, 1)
    blur = lambda a: gaussian_filter(a, 1.5, truncate=3.5, axes=(2, 3))[:, :, 5:-5, 5:-5]
    a, b = x.double().numpy(), y.double().numpy()
    m_a, m_b = blur(a), blur(b)
    structure = 2 * (blur(a * b) - m_a * m_b) + 0.03**2
    structure /= blur(a * a) - m_a**2 + blur(b * b) - m_b**2 + 0.03**2
    expected = (structure * (2 * m_a * m_b + 0.01**2) / (m_a**2 + m_b**2 + 0.01**2)).mean((1, 2, 3))
    np.testing.assert_allclose(draw_gan.ssim(x, y).numpy(), expected, atol=1e-4)
    torch.testing.assert_close(draw_gan.ssim(x, x), torch.ones(3))


def test_ssim_of_flat_images_compares_their_means():
    x, y = torch.full((1, 1, 16, 16), 0.2), torch.full((1, 1, 16, 16), 0.7)
    expected = (2 * 0.2 * 0.7 + 1e-4) / (0.2**2 + 0.7**2 + 1e-4)
    assert draw_gan.ssim(x, y).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("C, S, sizes", [(1, 28, [32 * 14 * 14, 64 * 7 * 7, 256]), (3, 32, [32 * 16 * 16, 64 * 8 * 8, 256]),
                                         (3, 30, [32 * 15 * 15, 64 * 8 * 8, 256])])  # fmt: skip
def test_discriminator_gives_logits_and_the_features_of_a_layer(C, S, sizes):
    D, x = draw_gan.Discriminator(C, S), torch.rand(4, C, S, S)
    assert D(x).shape == (4,)
    for layer, size in enumerate(sizes, 1):
        features, logits = D(x, layer)
        assert features.shape == (4, size)
        assert torch.equal(logits, D(x))
    first = F.leaky_relu(F.conv2d(2 * x - 1, D.layers[0].weight, D.layers[0].bias, stride=2, padding=2), 0.2)
    torch.testing.assert_close(D(x, 1)[0], first.flatten(1))


def test_the_guard():
    """The lead of D is 1 when it is sure and right, 0 when it cannot tell."""
    sure, blind = torch.full((8,), 30.0), torch.zeros(8)
    assert [rests.item() for rests in draw_gan.guard(sure, -sure, -sure, 0.1, 0.6)] == [1, 0]
    assert [rests.item() for rests in draw_gan.guard(blind, blind, blind, 0.1, 0.6)] == [0, 1]
    assert [rests.item() for rests in draw_gan.guard(sure, -sure, sure, 0.1, 0.6)] == [0, 0]  # a lead of one half
    for logits in ((sure, -sure, -sure), (-sure, sure, sure)):
        assert [rests.item() for rests in draw_gan.guard(*logits, -1, 1)] == [0, 0]


def test_who_rests_stays_as_he_is():
    """Fused Adam leaves out an update whose found_inf is 1: weights, moments and step count stay."""
    torch.manual_seed(5)
    net, twin = nn.Linear(3, 1), nn.Linear(3, 1)
    twin.load_state_dict(net.state_dict())
    resting, plain = (torch.optim.Adam(n.parameters(), 0.1, fused=True) for n in (net, twin))
    for step, rests in enumerate([0.0, 1.0, 1.0, 0.0]):
        x = torch.full((2, 3), step + 1.0)
        for n, optimiser in ((net, resting), (twin, plain)):
            optimiser.zero_grad()
            n(x).square().sum().backward()
        resting.found_inf = torch.tensor(rests)
        resting.step()
        if not rests:
            plain.step()
        torch.testing.assert_close(net.weight, twin.weight)


def test_binarise():
    x = torch.tensor([0.0, 0.2, 0.5, 0.7, 1.0]).repeat(20_000, 1)
    drawn = draw_gan.binarise(x, "stochastic", torch.Generator().manual_seed(0))
    assert set(drawn.unique().tolist()) == {0, 1}
    torch.testing.assert_close(drawn.mean(0), x[0], atol=5 * 0.5 / math.sqrt(20_000), rtol=0)
    assert torch.equal(drawn, draw_gan.binarise(x, "stochastic", torch.Generator().manual_seed(0)))
    assert draw_gan.binarise(x, "threshold")[0].tolist() == [0, 0, 0, 1, 1]
    assert draw_gan.binarise(x, "none") is x


@pytest.mark.parametrize("size, n, gaps", [(19, 10, {1, 2}), (1588, 1000, {1, 2}), (60_000, 10_000, {6}), (10, 10, {1}), (7, 10, {1})])
def test_spread_goes_from_end_to_end(size, n, gaps):
    chosen = draw_gan.spread(torch.arange(size), n)
    assert len(chosen) == min(n, size) and chosen[0] == 0
    assert set(chosen.diff(append=torch.tensor([size])).tolist()) == gaps  # the last is as near to the end as any two are


# Pictures and runs ------------------------------------------------------------------------------------------------------


def test_boxes_are_drawn_where_the_window_is():
    """A window over the middle of columns 3 to 7 and rows 5 to 9 (from 1), zoomed 4 times."""
    params = attention(5 / 5.5 - 1, 7 / 5.5 - 1, 1.0, 2 / 4.5).float()[0]  # g = (5, 7), N = 3, stride 2
    picture = np.asarray(draw_gan.boxed(torch.zeros(1, 10, 10), [(params, 3, "lime"), (None, 2, "red")], zoom=4))
    rows, columns = np.nonzero(picture[..., 1])
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (10, 26, 18, 34)  # 4 (mu - 0.5)
    assert not picture[..., 0].any()


def test_canvases_and_samples():
    nets = {"G": draw_gan.Draw(3, 8, 5, 16, 3, 2, 2)}
    seeded = lambda: torch.Generator().manual_seed(3)
    frames = draw_gan.canvases(nets, 6, generator=seeded(), batch_size=10)
    assert frames.shape == (3, 6, 3, 8, 8) and frames.min() >= 0 and frames.max() <= 1
    assert draw_gan.canvases(nets, 6, steps=5, generator=seeded(), batch_size=10).shape == (5, 6, 3, 8, 8)
    assert torch.equal(draw_gan.sample(nets, 6, generator=seeded(), batch_size=10), frames[-1])
    assert not torch.equal(draw_gan.sample(nets, 6, generator=torch.Generator().manual_seed(4), batch_size=10), frames[-1])
    many = draw_gan.sample(nets, 25, generator=seeded(), batch_size=10)
    assert len(many) == len(many.unique(dim=0)) == 25  # no batch is there twice
    assert torch.equal(many[:6], frames[-1])
    assert torch.equal(many, draw_gan.canvases(nets, 25, generator=seeded(), batch_size=10)[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty grey and forty colour images of 12 px."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for kind, shape in (("grey", (12, 12)), ("colour", (12, 12, 3))):
        (root / kind).mkdir()
        for k in range(40):
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(root / kind / f"{k}.png")
    return root


def arguments(folder, out, *more):
    small = ["--steps", "3", "--hidden", "16", "--z-dim", "4", "--batch-size", "8", "--device", "cpu", "--write", "3"]
    return ["--dataset", str(folder), "--data-dir", str(out), "--out", str(out / "run"), "--iters", "2", *small, *more]


@pytest.mark.parametrize("likeness, rests", [(None, None), ("feature", None), ("pixel", "D"), ("ssim", "D"), ("feature", "G")])
def test_two_updates_by_hand(folder, tmp_path, likeness, rests):
    """The bound, or eqs. 20 and 21: D first and then DRAW, whose gradient is clipped, at rates that fall; who rests stays."""
    flags = ["--no-amp", "--epochs", "1", "--clip", "0.5", "--lr-g", "0.01", "--lr-d", "0.005"]
    if likeness is not None:
        flags += ["--objective", "draw-gan", "--likeness", likeness, "--layer", "2", "--gamma", "3", "--adversarial", "7", "--guard"]
        flags += {None: ["-1", "1"], "D": ["-1", "-0.9"], "G": ["0.9", "1"]}[rests]  # the lead of a new D is about nought
    draw_gan.main(arguments(folder / "grey", tmp_path, *flags))
    trained = metrics.load_checkpoint(tmp_path / "run")

    images, _ = data.load(str(folder / "grey"), tmp_path)
    torch.manual_seed(0)
    nets = draw_gan.build(draw_gan.parse_args(["--resume", str(tmp_path / "run")]))
    G, D, bce, one, nought = nets["G"], nets.get("D"), F.binary_cross_entropy_with_logits, torch.ones(8), torch.zeros(8)
    G.c_0.data = torch.logit(images.float().mean(0) / 255)
    rates, betas = {"G": 0.01, "D": 0.005}, {"G": (0.9, 0.999), "D": (0.5, 0.999)}
    opts = {name: torch.optim.Adam(net.parameters(), betas=betas[name]) for name, net in nets.items()}
    for share, x in zip((1, 0.75), data.batches(images, 8, "cpu", seed=0)):  # the epoch is 4 updates, for 36 images
        for name, opt in opts.items():
            opt.param_groups[0]["lr"] = share * rates[name]
        if likeness is None:
            x = torch.bernoulli(x)
        canvases, _, kl = G(torch.randn(3, 8, 4), x)
        rec, pixels = canvases[-1].sigmoid(), bce(canvases[-1], x, reduction="sum") / 8
        if likeness is None:
            loss = pixels + kl.sum() / 8
        else:
            prior = G(torch.randn(3, 8, 4))[0][-1].sigmoid()
            opts["D"].zero_grad()
            (bce(D(x), one) + bce(D(rec.detach()), nought) + bce(D(prior.detach()), nought)).backward()
            if rests != "D":
                opts["D"].step()
            features = F.mse_loss(D(rec, 2)[0], D(x, 2)[0], reduction="sum") / 2 / 8
            like = {"feature": features, "pixel": pixels, "ssim": 144 * (1 - draw_gan.ssim(rec, x).mean())}[likeness]
            loss = kl.sum() / 8 + 3 * like + 7 * (bce(D(rec), one) + bce(D(prior), one))
        opts["G"].zero_grad()
        loss.backward()
        assert nn.utils.clip_grad_norm_(G.parameters(), 0.5) > 0.5
        if rests != "G":
            opts["G"].step()

    for name, net in nets.items():
        for ours, (key, p) in zip(trained["optimisers"][name]["state"].values(), net.named_parameters(), strict=True):
            mean = opts[name].state[p].get("exp_avg", torch.zeros_like(p))  # of the gradients; none where it rested
            torch.testing.assert_close(ours["exp_avg"], mean, rtol=0, atol=1e-3 * mean.abs().max().item())
            torch.testing.assert_close(trained["nets"][name][key], p.data, rtol=0, atol=0.1 * rates[name])  # Adam makes much of rounding


def test_the_rate_falls_to_a_twentieth(folder, tmp_path):
    draw_gan.main(arguments(folder / "grey", tmp_path, "--epochs", "1", "--iters", "5", "--lr-g", "0.01"))
    (group,) = metrics.load_checkpoint(tmp_path / "run")["optimisers"]["G"]["param_groups"]
    assert group["lr"] == pytest.approx(0.01 / 20)


@pytest.mark.parametrize("kind, more", [
    ("grey", []),
    ("colour", ["--no-attention"]),
    ("grey", ["--objective", "draw-gan"]),
    ("colour", ["--objective", "draw-gan", "--likeness", "ssim"]),
    ("grey", ["--objective", "draw-gan", "--likeness", "pixel", "--no-attention"]),
])  # fmt: skip
def test_a_run_leaves_its_pictures_and_its_bound(folder, tmp_path, kind, more):
    draw_gan.main(arguments(folder / kind, tmp_path, *more))
    run = tmp_path / "run"
    for name in ("steps.png", "steps.gif", "reconstructions.png", "reconstructions.gif", "checkpoint.pt"):
        assert (run / name).exists()
    with Image.open(run / "steps.gif") as film:
        assert film.n_frames == 3
    with open(run / "bound.csv") as file:
        (row,) = csv.DictReader(file)
    nats = {name: float(value) for name, value in row.items()}
    assert nats["step"] == 2 and nats["images"] == 4  # one image in ten is held out
    assert nats["bound"] == pytest.approx(nats["reconstruction"] + nats["kl"], abs=0.01)
    assert nats["kl"] == pytest.approx(sum(nats[f"kl_{t}"] for t in (1, 2, 3)), abs=0.01)

    args = draw_gan.parse_args(["--resume", str(run)])
    assert args.binarise == ("stochastic" if kind == "grey" and not more else "none")
    nets = draw_gan.build(args)
    saved = torch.load(run / "checkpoint.pt", weights_only=True)["nets"]
    assert set(nets) == set(saved) == ({"G", "D"} if "draw-gan" in more else {"G"})
    nets["G"].load_state_dict(saved["G"])
    drawn = draw_gan.sample(nets, 64, generator=torch.Generator().manual_seed(0), batch_size=8)
    grid = make_grid(drawn, nrow=8).mul(255).add(0.5).clamp(0, 255).byte()
    with Image.open(run / "samples/000002.png") as picture:
        difference = torch.tensor(np.array(picture)).permute(2, 0, 1).int() - grid.int()
    assert difference.abs().max() <= 1  # samples/ holds draws from the prior


def test_the_first_canvas_starts_as_the_mean_image(folder, tmp_path):
    draw_gan.main(arguments(folder / "colour", tmp_path, "--lr-g", "1e-9"))
    images, _ = data.load(str(folder / "colour"), tmp_path)
    c_0 = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["nets"]["G"]["c_0"]
    torch.testing.assert_close(c_0.sigmoid(), images.double().mean(0).div(255).float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("more, text", [
    (["--guard", "0.6", "0.1"], "--guard"), (["--guard", "0", "2"], "--guard"), (["--gamma", "0"], "--gamma"),
    (["--steps", "0"], "--steps"), (["--layer", "4"], "--layer"), (["--sample", "4"], "--resume"),
])  # fmt: skip
def test_bad_flags_are_refused(capsys, more, text):
    with pytest.raises(SystemExit) as stop:
        draw_gan.parse_args(more)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and text in error and error.count("\n") == 1


def test_ssim_needs_eleven_pixels(folder, tmp_path):
    args = draw_gan.parse_args(arguments(folder / "grey", tmp_path, "--size", "10", "--objective", "draw-gan", "--likeness", "ssim"))
    with pytest.raises(data.InputError, match="ssim"):
        draw_gan.train(args)
    assert not (tmp_path / "run").exists()
