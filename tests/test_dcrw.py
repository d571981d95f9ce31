"""DCRW against its equations, torch.distributions and exact likelihoods; about 12 s."""

import csv
import inspect
import itertools
import json
import math
import random

import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageColor
from torchvision.transforms.functional import to_tensor
from torchvision.utils import make_grid

import dcrw
import draw_gan


def small(read=3, channels=1, size=6, z_dim=4, steps=3, write=2, hidden=7, noise="per-step"):
    """A net whose weights and learned biases are all at random, so that no term of an equation hides behind a zero."""
    torch.manual_seed(0)
    net = dcrw.DCRW(channels, size, z_dim, steps, read, write, hidden, noise)
    with torch.no_grad():
        net.h_0.normal_()
        net.c_0.normal_()
    return net


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# The attention ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["window", "filterbank", "read", "write"])
def test_the_attention_is_that_of_draw_gan(name):
    assert inspect.getsource(getattr(dcrw, name)) == inspect.getsource(getattr(draw_gan, name))


def filters_by_hand(params, N, S):
    """Eqs. 13 to 20 with indices from 1, a number at a time; params (g~_x, g~_y, log variance, log delta~, log gamma)."""
    g_x, g_y, log_variance, log_delta, log_gamma = params
    delta = (S - 1) / (N - 1) * math.exp(log_delta)
    both = []
    for g in (g_x, g_y):
        rows = []
        for i in range(1, N + 1):
            mu = (S + 1) / 2 * (g + 1) + (i - N / 2 - 0.5) * delta
            row = [math.exp(-((a - mu) ** 2) / (2 * math.exp(log_variance))) for a in range(1, S + 1)]
            rows.append([value / sum(row) for value in row])
        both.append(torch.tensor(rows))
    return *both, math.exp(log_gamma)


def test_read_and_write_equations_13_to_23():
    rng = random.Random(0)
    params = [[rng.uniform(-0.7, 0.7) for _ in range(5)] for _ in range(4)]
    image, patch = torch.rand(4, 2, 9, 9), torch.randn(4, 2, 5, 5)
    F_x, F_y, gamma = dcrw.filterbank(torch.tensor(params), 5, 9)
    glimpse, update = dcrw.read(image, F_x, F_y, gamma), dcrw.write(patch, F_x, F_y, gamma)
    assert glimpse.shape == (4, 2, 5, 5) and update.shape == (4, 2, 9, 9)
    for b, channel in itertools.product(range(4), range(2)):
        X, Y, intensity = filters_by_hand(params[b], 5, 9)
        torch.testing.assert_close(F_x[b], X)
        torch.testing.assert_close(F_y[b], Y)
        torch.testing.assert_close(glimpse[b, channel], intensity * Y @ image[b, channel] @ X.T)
        torch.testing.assert_close(update[b, channel], Y.T @ patch[b, channel] @ X / intensity)


# The model ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read, features, seen", [(["--read", "7"], 256, 2), (["--read", "none"], 3136, 1)])
def test_sizes(read, features, seen):
    """Conv 3x3x32, pool, conv 3x3x64, pool; LSTM 256; 7 x 7 read, 5 x 5 write (Table I)."""
    net = dcrw.build(dcrw.parse_args(["--dataset", "mnist", *read]))["DCRW"]
    side = 7 if seen == 2 else 28
    assert net.cnn(torch.zeros(3, seen, side, side)).shape == (3, features)  # 64 x 2 x 2 of a glimpse, 64 x 7 x 7
    state = 256 if seen == 2 else 0                                         # eq. 9 has h_dec, eq. 29 has not
    count = sum(p.numel() for p in net.parameters())
    cnn = 9 * seen * 32 + 32 + 9 * 32 * 64 + 64
    lstm = 4 * 256 * (10 + 256 + 2)
    attention = 5 * 257 * seen                                              # write's alone, or read's as well
    assert count == cnn + (features + state + 1) * 20 + lstm + attention + 257 * 25 + 2 * 256 + 784


def by_hand(net, x, noise):
    """Eqs. 4 to 12 and 29 to 32 out of the weights, without the net's own code. -> c_1..c_T, mu, log sigma."""
    w = net.state_dict()

    def cnn(x):
        for layer in ("cnn.0", "cnn.3"):
            x = F.relu(F.conv2d(x, w[f"{layer}.weight"], w[f"{layer}.bias"], padding=1))
            odd = (0, x.shape[3] % 2, 0, x.shape[2] % 2)
            x = F.max_pool2d(F.pad(x, odd, value=-math.inf), 2)  # the last window of an odd side is cut, not left out
        return x.flatten(1)

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def windows(params, N):
        filters = [filters_by_hand(row, N, x.shape[3]) for row in params.tolist()]
        return [torch.stack(parts) for parts in list(zip(*filters))[:2]] + [torch.tensor([f[2] for f in filters])]

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
        gates = z @ w["rnn.weight_ih"].T + w["rnn.bias_ih"] + h @ w["rnn.weight_hh"].T + w["rnn.bias_hh"]
        i, f, g, o = gates.chunk(4, 1)
        s = torch.sigmoid(f) * s + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(s)
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


@pytest.mark.parametrize("read", [3, None])
def test_every_weight_learns(read):
    net = small(read)
    x = torch.rand(5, 1, 6, 6)
    c, mu, log_sigma = net(x, net.draw_noise(5))
    (dcrw.reconstruction(c, x).mean() + dcrw.kl(mu, log_sigma).sum(0).mean()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def latents(net, x, noise):
    """The z_t (T, B, Z) that reach the LSTM."""
    seen = []
    hook = net.rnn.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        _, mu, log_sigma = net(x, noise)
    hook.remove()
    return torch.stack(seen), mu, log_sigma


@pytest.mark.parametrize("read", [3, None])
def test_latents_are_drawn_anew_at_every_step(read):
    net = small(read)
    z, mu, log_sigma = latents(net, torch.rand(2000, 1, 6, 6), net.draw_noise(2000))
    noise = (z - mu) / log_sigma.exp()
    for s, t in [(0, 1), (1, 2), (0, 2)]:
        assert abs((noise[s] * noise[t]).mean()) < 5 / math.sqrt(2000 * 4)  # independent: N(0, 1 / 8000)
    assert noise.mean().abs() < 5 / math.sqrt(3 * 8000)
    assert noise.square().mean() == pytest.approx(1, abs=5 * math.sqrt(2 / (3 * 8000)))


def test_noise_once_is_one_draw():
    net = small(noise="once")
    z, mu, log_sigma = latents(net, torch.rand(5, 1, 6, 6), net.draw_noise(5))
    noise = (z - mu) / log_sigma.exp()
    torch.testing.assert_close(noise, noise[:1].expand_as(noise), rtol=1e-4, atol=1e-5)
    assert noise[0].std() > 0.5


@pytest.mark.parametrize("read", [3, None])
def test_the_lstm_stays_out_of_cudas_autocast(read):
    """There autocast hands an LSTM cell bfloat16 states; a CPU's does not, so what is asked is whether CUDA's is on."""
    net, inside = small(read), []
    net.rnn.register_forward_pre_hook(lambda module, inputs: inside.append(torch.is_autocast_enabled("cuda")))
    torch.set_autocast_enabled("cuda", True)
    try:
        net(torch.rand(2, 1, 6, 6), net.draw_noise(2))
        assert torch.is_autocast_enabled("cuda")
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert inside == [False] * net.steps


def test_without_attention_the_encoder_looks_once_and_its_kl_counts_every_step():
    net = small(None, steps=5)
    x, looks = torch.rand(6, 1, 6, 6), []
    net.cnn.register_forward_hook(lambda *_: looks.append(1))
    z, mu, log_sigma = latents(net, x, net.draw_noise(6))
    assert len(looks) == 1
    assert mu.shape == (5, 6, 4) and (mu == mu[0]).all() and (log_sigma == log_sigma[0]).all()
    assert all((z[s] != z[t]).all() for s, t in itertools.combinations(range(5), 2))
    images = torch.randint(256, (6, 1, 6, 6), dtype=torch.uint8)
    _, l_z, each = dcrw.bound({"DCRW": net}, images)
    with torch.no_grad():
        mu, log_sigma = net.q(net.cnn(images / 255)).double().chunk(2, 1)
    normal = torch.distributions.Normal
    once = torch.distributions.kl_divergence(normal(mu, log_sigma.exp()), normal(0.0, 1.0)).sum(1).mean().item()
    assert each == pytest.approx([once] * 5, rel=1e-5)
    assert l_z == pytest.approx(5 * once, rel=1e-5)


# The losses ---------------------------------------------------------------------------------------------------------


def test_kl_equation_26_and_the_constant_of_27():
    mu, log_sigma = torch.randn(10, 8, 4, dtype=torch.float64), torch.randn(10, 8, 4, dtype=torch.float64)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mu, log_sigma.exp()), normal(0.0, 1.0)).sum(2)
    torch.testing.assert_close(dcrw.kl(mu, log_sigma), expected)
    assert dcrw.kl(torch.zeros(3, 4), torch.zeros(3, 4)).tolist() == [0, 0, 0]
    T, Z = 10, 4
    printed = 0.5 * (mu**2 + (2 * log_sigma).exp() - 2 * log_sigma).sum((0, 2)) - T / 2
    torch.testing.assert_close(printed - expected.sum(0), torch.full((8,), T * (Z - 1) / 2, dtype=torch.float64))


def test_reconstruction_equation_25():
    c, b = torch.randn(5, 2, 6, 6), torch.randint(2, (5, 2, 6, 6)).float()
    expected = -torch.distributions.Bernoulli(logits=c).log_prob(b).sum((1, 2, 3))
    torch.testing.assert_close(dcrw.reconstruction(c, b), expected)
    assert dcrw.reconstruction(torch.zeros(2, 1, 28, 28), torch.rand(2, 1, 28, 28)).tolist() == pytest.approx(
        [784 * math.log(2)] * 2
    )
    x = torch.tensor([0.25]).view(1, 1, 1, 1)  # a grey pixel: the mean over binary ones with that chance
    at = lambda value: dcrw.reconstruction(torch.full((1, 1, 1, 1), 0.7), torch.full((1, 1, 1, 1), value)).item()
    assert dcrw.reconstruction(torch.full((1, 1, 1, 1), 0.7), x).item() == pytest.approx(0.25 * at(1.0) + 0.75 * at(0.0))


def trained_toy(read, updates=300):
    """A net of two steps and one latent number, trained on 4 images of 2 x 2 pixels, each 4 times: entropy log 4."""
    torch.manual_seed(0)
    net = dcrw.DCRW(1, 2, 1, steps=2, read=read, write=2, hidden=16)
    x = torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]]).repeat(4, 1).view(16, 1, 2, 2)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(updates):
        c, mu, log_sigma = net(x, net.draw_noise(16))
        loss = dcrw.reconstruction(c, x).mean() + dcrw.kl(mu, log_sigma).sum(0).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net, x


@torch.no_grad()
def exact_nll(net, x):
    """-log p(x) (B,) of binary x by quadrature over z_1 and z_2."""
    grid = torch.linspace(-7, 7, 201)
    z = torch.stack([part.flatten() for part in torch.meshgrid(grid, grid, indexing="ij")])[..., None]  # (2, n, 1)
    c = net.c_0 + net.updates(z).sum(0)
    log_prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum((0, 2)) + 2 * math.log(14 / 200)
    log_p = torch.distributions.Bernoulli(logits=c).log_prob(x[:, None]).sum((2, 3, 4))  # (16, n)
    return -torch.logsumexp(log_p + log_prior, 1)


@torch.no_grad()
def mean_bound(net, x, n=2000):
    """L_x + L_z (B,) and the standard error of its mean over n draws of the latents."""
    c, mu, log_sigma = net(x.repeat(n, 1, 1, 1), net.draw_noise(n * len(x)))
    draws = dcrw.reconstruction(c, x.repeat(n, 1, 1, 1)) + dcrw.kl(mu, log_sigma).sum(0)
    draws = draws.view(n, len(x))
    return draws.mean(0), draws.std(0) / math.sqrt(n)


@pytest.mark.parametrize("read", [2, None])
def test_the_bound_is_never_below_the_exact_nll(read):
    net, x = trained_toy(read)
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).view(16, 1, 2, 2)
    assert torch.exp(-exact_nll(net, every)).sum() == pytest.approx(1, abs=1e-4)
    nll = exact_nll(net, x)
    mean, error = mean_bound(net, x)
    assert (mean > nll - 5 * error).all()
    assert dcrw.kl(*net(x, net.draw_noise(16))[1:]).sum(0).mean() > 0.3  # the latents tell something,
    assert math.log(4) < mean.mean() < nll.mean() + 0.3                 # and the bound is near: its constants are right


def test_bound_is_a_mean_over_images():
    net = small(steps=2)
    images = torch.randint(256, (7, 1, 6, 6), dtype=torch.uint8)
    l_x, l_z, each = dcrw.bound({"DCRW": net}, images, batch_size=4, seed=5)
    generator, total, steps = seeded(5), 0, torch.zeros(2)
    for part in (images[:4] / 255, images[4:] / 255):
        noise = torch.randn(2, len(part), 4, generator=generator)
        with torch.no_grad():
            c, mu, log_sigma = by_hand(net, part, noise)
        p = torch.sigmoid(c[-1].double())
        total -= (part * p.log() + (1 - part) * (1 - p).log()).sum().item()
        q = torch.distributions.Normal(mu, log_sigma.exp())
        steps += torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum((1, 2))
    assert l_x == pytest.approx(total / 7, rel=1e-4)
    assert each == pytest.approx((steps / 7).tolist(), rel=1e-4)
    assert l_z == pytest.approx(sum(each))


# Drawing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [3, None])
def test_canvases_and_samples_come_from_the_prior_alone(read):
    net = small(read)
    nets = {"DCRW": net}
    frames = dcrw.canvases(nets, 6, generator=seeded(3), batch_size=10)
    assert frames.shape == (3, 6, 1, 6, 6) and frames.min() >= 0 and frames.max() <= 1
    z, (h, s), c = torch.randn(3, 10, 4, generator=seeded(3)), net.h_0[:, None].expand(-1, 10, -1), net.c_0
    for t in range(3):
        h, s = net.rnn(z[t], (h, s))
        c = c + net.update(h)
        torch.testing.assert_close(frames[t], torch.sigmoid(c)[:6])
    assert torch.equal(dcrw.sample(nets, 6, generator=seeded(3), batch_size=10), frames[-1])
    assert not torch.equal(dcrw.sample(nets, 6, generator=seeded(4), batch_size=10), frames[-1])
    assert dcrw.canvases(nets, 6, steps=5, generator=seeded(3), batch_size=10).shape == (5, 6, 1, 6, 6)
    for layer in (net.cnn[0], net.cnn[3], net.q):
        layer.weight.data.fill_(math.nan)
    assert torch.equal(dcrw.sample(nets, 6, generator=seeded(3), batch_size=10), frames[-1])


def test_more_than_one_batch():
    nets = {"DCRW": small()}
    many = dcrw.sample(nets, 25, generator=seeded(3), batch_size=10)
    assert len(many) == len(many.unique(dim=0)) == 25  # no batch is there twice
    assert torch.equal(many[:6], dcrw.sample(nets, 6, generator=seeded(3), batch_size=10))
    assert torch.equal(many, dcrw.canvases(nets, 25, generator=seeded(3), batch_size=10)[-1])


def test_pictures(tmp_path):
    """times.png has the grids of t = 1, 4, 6 and 10 (Figures 4 and 5), steps.png a column per step."""
    (tmp_path / "samples").mkdir()
    nets = {"DCRW": small(steps=10)}
    args = dcrw.parse_args(["--batch-size", "64", "--seed", "2"])
    held_out = torch.randint(256, (10, 1, 6, 6), dtype=torch.uint8)
    dcrw.draw_pictures(nets, args, held_out, tmp_path, 40)
    frames = dcrw.canvases(nets, 64, generator=seeded(2), batch_size=64)
    opened = {name: to_tensor(Image.open(tmp_path / name)) for name in ("times.png", "steps.png", "reconstructions.png")}
    side = 8 * (6 + 2) + 2
    for k, t in enumerate((1, 4, 6, 10)):
        left = 8 + k * (side + 8)
        shown = opened["times.png"][:, 8 : 8 + side, left : left + side]
        torch.testing.assert_close(shown, make_grid(frames[t - 1], nrow=8), rtol=0, atol=1 / 255)
    for t in range(10):
        shown = opened["steps.png"][:1, 8 * 3 + 2 : 8 * 3 + 8, 8 * t + 2 : 8 * t + 8]  # the fourth sample
        torch.testing.assert_close(shown, frames[t, 3], rtol=0, atol=1 / 255)
    torch.testing.assert_close(opened["reconstructions.png"][:1, 2:8, 2:8], held_out[0] / 255, rtol=0, atol=1 / 255)
    with Image.open(tmp_path / "steps.gif") as gif:
        assert gif.n_frames == 10
    assert (tmp_path / "samples/000040.png").exists()


def test_loss_curves(tmp_path):
    """L_x = 100 lies on the top line of an axis from 10 to 100, L_z = 10 on the bottom one, 10 sqrt(10) half-way."""
    rows = [["step", "l_x", "l_z", "test_l_x", "test_l_z", "images_per_s"]]
    rows += [[50, 100, 10, "", "", 9], [100, 100, 10, 31.6227766, "", 9]]
    with open(tmp_path / "log.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    dcrw.draw_losses(tmp_path)
    image = Image.open(tmp_path / "losses.png")
    for at, colour in {(450, 50): "navy", (450, 360): "firebrick", (600, 205): "royalblue"}.items():
        assert image.getpixel(at) == ImageColor.getrgb(colour)


def test_flags():
    assert dcrw.parse_args([]).read == 7 and dcrw.parse_args([]).write == 5
    assert dcrw.parse_args(["--read", "none"]).read == "none"
    for wrong in (["--read", "0"], ["--read", "all"], ["--noise", "never"]):
        with pytest.raises(SystemExit) as stop:
            dcrw.parse_args(wrong)
        assert stop.value.code == 2


@pytest.mark.parametrize("read", ["3", "none"])
def test_a_run(tmp_path, read, capsys):
    """Trained on stripes, a run lowers its loss, logs it, and can be drawn with more steps than it was trained with."""
    for split, n in (("train", 40), ("test", 10)):
        (tmp_path / "set" / split).mkdir(parents=True)
        for i in range(n):
            picture = Image.new("L", (8, 8))
            picture.paste(255, (i % 8, 0, i % 8 + 1, 8))
            picture.save(tmp_path / "set" / split / f"{i}.png")
    run = tmp_path / "run"
    flags = ["--batch-size", "10", "--iters", "30", "--log-every", "10", "--sample-every", "20", "--steps", "3"]
    dcrw.main(["--dataset", str(tmp_path / "set"), "--data-dir", str(tmp_path), "--out", str(run), "--device", "cpu",
               "--read", read, "--z-dim", "3", "--lr", "0.01", *flags])
    with open(run / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [10, 20, 30]
    assert [bool(row["test_l_x"]) for row in rows] == [False, True, False]
    assert float(rows[-1]["l_x"]) < min(float(rows[0]["l_x"]), 64 * math.log(2))  # better than a grey canvas
    assert json.loads((run / "args.json").read_text())["read"] == (3 if read == "3" else "none")
    assert "held-out, 10 images: L_x" in capsys.readouterr().out
    dcrw.main(["--resume", str(run), "--sample", "5", "--steps", "6", "--out", str(tmp_path / "drawn")])
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 5


def test_held_out_images_are_of_every_class(tmp_path):
    """Of a folder that lies class by class, black and then white, reconstructions.png has both among its ten."""
    for split, name in itertools.product(("train", "test"), ("black", "white")):
        (tmp_path / "set" / split / name).mkdir(parents=True)
        for i in range(20):
            Image.new("L", (8, 8), 255 * (name == "white")).save(tmp_path / "set" / split / name / f"{i}.png")
    dcrw.main(["--dataset", str(tmp_path / "set"), "--data-dir", str(tmp_path), "--out", str(tmp_path / "run"), "--device", "cpu",
               "--batch-size", "10", "--iters", "1", "--steps", "2"])
    shown = to_tensor(Image.open(tmp_path / "run/reconstructions.png"))[0, 6::10, 6]  # a pixel of each row's held-out image
    assert len(shown) == 10 and set(shown.tolist()) == {0, 1}
