"""VAE, denoising VAE, InfoVAE and AAE against closed forms, quadrature, torch.distributions and updates by hand; about 10 s."""

import argparse
import csv
import math

import pytest
import torch
from PIL import Image
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits, one_hot

import data
import metrics
import vae

OBJECTIVES = ["vae", "dvae", "info", "aae"]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def patterns(tmp_path_factory):
    """A folder of two classes: eight-pixel squares, class 0 all black with a white left half, class 1 the negative."""
    folder = tmp_path_factory.mktemp("data") / "patterns"
    for label, name in enumerate(["left", "right"]):
        image = Image.new("L", (8, 8), 255 * label)
        image.paste(255 * (1 - label), (0, 0, 4, 8))
        for split, n in (("train", 40), ("test", 100)):
            (folder / split / name).mkdir(parents=True)
            for i in range(n):
                image.save(folder / split / name / f"{i}.png")
    return folder


def command(patterns, out, *more, iters=2):
    flags = f"--data-dir {patterns.parent} --out {out} --iters {iters} --batch-size 20 --hidden 16 --z-dim 3 --device cpu --no-amp"
    return ["--dataset", str(patterns), *flags.split(), *more]


def bare(arch="dense", objective="vae", channels=1, size=8, z_dim=3, hidden=16, classes=0):
    return vae.build(argparse.Namespace(**locals()))


def last_row(folder):
    with open(folder / "log.csv", newline="") as file:
        return list(csv.DictReader(file))[-1]


# Losses -------------------------------------------------------------------------------------------------------------


def test_kl_is_that_of_torch_distributions():
    mu, logvar = torch.randn(50, 7) * 3, torch.randn(50, 7) * 2
    q, p = Independent(Normal(mu, (logvar / 2).exp()), 1), Independent(Normal(torch.zeros(7), torch.ones(7)), 1)
    torch.testing.assert_close(vae.kl(mu, logvar), kl_divergence(q, p))
    assert torch.equal(vae.kl(torch.zeros(4, 7), torch.zeros(4, 7)), torch.zeros(4))


def test_reconstruction_is_the_bernoulli_cross_entropy_summed_over_pixels():
    logits, x = torch.randn(6, 3, 4, 4) * 4, torch.rand(6, 3, 4, 4)
    binary = x.round()
    expected = -Bernoulli(logits=logits).log_prob(binary).sum((1, 2, 3))
    torch.testing.assert_close(vae.reconstruction(logits, binary), expected)
    grey = [binary_cross_entropy(p, t, reduction="sum").item() for p, t in zip(logits.double().sigmoid(), x.double())]
    torch.testing.assert_close(vae.reconstruction(logits, x), torch.tensor(grey))
    nothing_known = vae.reconstruction(torch.zeros(2, 1, 28, 28), torch.rand(2, 1, 28, 28))
    torch.testing.assert_close(nothing_known, torch.full((2,), 784 * math.log(2)))


def test_grey_values_stand_for_images_binarised_at_random():
    """The mean over all 2^4 binary images, weighted by their chance given the grey values."""
    logits, grey = torch.randn(1, 1, 2, 2) * 2, torch.rand(1, 1, 2, 2)
    images = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4).view(16, 1, 2, 2)
    chance = Bernoulli(grey).log_prob(images).sum((1, 2, 3)).exp()
    mean = (chance * vae.reconstruction(logits.expand(16, 1, 2, 2), images)).sum()
    torch.testing.assert_close(vae.reconstruction(logits, grey)[0], mean)


def test_mmd_is_the_double_loop_and_the_metric():
    x, y, sigma = torch.randn(9, 4), torch.randn(7, 4) + 1, 1.7

    def mean_kernel(a, b):
        values = [math.exp(-sum((p - q) ** 2 for p, q in zip(u, v)) / (2 * sigma**2)) for u in a for v in b]
        return sum(values) / len(values)

    a, b = x.tolist(), y.tolist()
    expected = mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b)
    assert vae.mmd(x, y, sigma).item() == pytest.approx(expected, rel=1e-4)
    assert metrics.mmd(x, y, kernel="rbf", bandwidth=sigma, unbiased=False) == pytest.approx(expected, rel=1e-6)
    assert vae.mmd(x, x, sigma).item() == pytest.approx(0, abs=1e-6)
    points = vae.mmd(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]]), 5.0)
    assert points.item() == pytest.approx(2 - 2 * math.exp(-1 / 2))


def test_mmd_of_labelled_rows_is_that_of_each_class():
    x, y, labels = torch.randn(10, 3), torch.randn(10, 3) + 1, torch.tensor([0, 2, 2, 0, 2, 5, 5, 2, 2, 5])
    expected = sum((labels == c).sum() / 10 * metrics.mmd(x[labels == c], y[labels == c], bandwidth=1.7) for c in (0, 2, 5))
    assert vae.mmd(x, y, 1.7, labels).item() == pytest.approx(expected.item(), rel=1e-4)
    swapped = torch.tensor([[0.0], [3.0]])  # together the same rows, class by class 3 apart
    assert vae.mmd(swapped, swapped.flip(0), 1.0, torch.arange(2)).item() == pytest.approx(2 - 2 * math.exp(-9 / 2))


def test_mmd_gradient_is_finite_and_right():
    x, y = torch.randn(30, 3, dtype=torch.double, requires_grad=True), torch.randn(5, 3, dtype=torch.double)
    distance = (x[:, None] - x[None]).square().sum(2), (x[:, None] - y[None]).square().sum(2)
    within, between = [(-d / (2 * 1.5**2)).exp().mean() for d in distance]
    expected = torch.autograd.grad(within - 2 * between, x)[0]
    torch.testing.assert_close(torch.autograd.grad(vae.mmd(x, y, 1.5), x)[0], expected)


def test_adversarial_losses():
    zero = torch.zeros(9)
    assert vae.d_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert vae.e_loss(zero).item() == pytest.approx(math.log(2))
    prior, code, bce = torch.randn(50) * 5, torch.randn(50) * 5, binary_cross_entropy_with_logits
    torch.testing.assert_close(vae.d_loss(prior, code), bce(prior, torch.ones(50)) + bce(code, torch.zeros(50)))
    torch.testing.assert_close(vae.e_loss(code), bce(code, torch.ones(50)))


def test_corruption_is_salt_and_pepper():
    x = torch.full((50, 3, 40, 40), 0.5)
    noisy = vae.corrupt(x, 0.3)
    assert torch.equal(x, torch.full_like(x, 0.5))
    assert torch.equal(noisy[:, 0], noisy[:, 1]) and torch.equal(noisy[:, 0], noisy[:, 2])  # whole pixels
    values = noisy[:, 0]
    for value, share in ((0.0, 0.15), (1.0, 0.15), (0.5, 0.7)):
        spread = math.sqrt(share * (1 - share) / values.numel())
        assert abs((values == value).double().mean().item() - share) < 5 * spread
    assert not torch.equal(vae.corrupt(x, 0.3), noisy)


def test_z_has_the_posterior_s_moments_and_passes_gradients():
    mu, logvar = torch.tensor([[2.0, -1.0]], requires_grad=True), torch.tensor([[0.0, math.log(9)]], requires_grad=True)
    z = vae.draw_z(mu.expand(40_000, 2), logvar.expand(40_000, 2))
    torch.testing.assert_close(z.mean(0), torch.tensor([2.0, -1.0]), atol=5 * 3 / 200, rtol=0)
    torch.testing.assert_close(z.std(0), torch.tensor([1.0, 3.0]), atol=0.06, rtol=0)
    d_mu, d_logvar = torch.autograd.grad(z.sum(0)[1], (mu, logvar))
    eps = (z[:, 1] - mu[0, 1]) / 3
    torch.testing.assert_close(d_mu, torch.tensor([[0.0, 40_000.0]]))
    assert d_logvar[0, 1].item() == pytest.approx((1.5 * eps).sum().item(), rel=1e-3)  # dz / dlogvar = sigma eps / 2


class Posterior(nn.Module):
    """The same q(z|x) = N(0.4, 0.8^2) for every image."""

    def forward(self, x, y=None):
        return torch.full((len(x), 1), 0.4), torch.full((len(x), 1), 2 * math.log(0.8))


class Line(nn.Module):
    """p(x|z): Bernoulli pixels with logits w z + b."""

    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor([1.5, -2.0, 0.7, 3.0])), nn.Parameter(torch.tensor([0.1, 0.5, -1.0, 0.3]))

    def forward(self, z, y=None):
        return (z * self.w + self.b).view(-1, 1, 2, 2)


def test_the_bound_exceeds_the_exact_nll_by_the_kl_to_the_true_posterior():
    """-log p(x) of a one-dimensional z and four binary pixels by quadrature; the held-out bound by its own draws."""
    x = torch.tensor([1.0, 0.0, 1.0, 1.0]).view(1, 1, 2, 2)
    decoder, n = Line(), 40_000
    z = torch.linspace(-12, 12, 24_001, dtype=torch.double)
    dz = z[1] - z[0]
    likelihood = Bernoulli(logits=z[:, None] * decoder.w + decoder.b).log_prob(x.flatten()).sum(1)
    joint = likelihood + Normal(0.0, 1.0).log_prob(z)
    nll = -torch.logsumexp(joint + dz.log(), 0)
    q = Normal(0.4, 0.8).log_prob(z)
    gap = (q.exp() * (q - (joint + nll)) * dz).sum().item()
    assert gap > 0.05  # q is not the posterior, so the two sides do differ
    images = (255 * x).byte().expand(n, 1, 2, 2)
    parts = vae.held_out({"encoder": Posterior(), "decoder": decoder}, images, None, 1000, seed=0)
    spread = (q.exp() * (likelihood + (q.exp() * -likelihood * dz).sum()) ** 2 * dz).sum().sqrt().item() / math.sqrt(n)
    assert sum(parts) == pytest.approx(nll.item() + gap, abs=5 * spread)
    again, other = (vae.held_out({"encoder": Posterior(), "decoder": decoder}, images, None, 1000, seed) for seed in (0, 1))
    assert parts == again and parts[0] != other[0]
    assert parts[1] == pytest.approx(kl_divergence(Normal(0.4, 0.8), Normal(0.0, 1.0)).item(), rel=1e-5)


# Networks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [0, 10])
@pytest.mark.parametrize("arch, channels, size, base", [
    ("dense", 1, 28, (1, 28, 28)), ("dense", 3, 32, (3, 32, 32)), ("dense", 1, 17, (1, 17, 17)),
    ("conv", 1, 28, (64, 7, 7)), ("conv", 3, 32, (128, 4, 4)), ("conv", 3, 64, (256, 4, 4)),
])  # fmt: skip
def test_shapes(arch, channels, size, base, classes):
    nets = bare(arch, "aae", channels, size, z_dim=5, classes=classes)
    x, y = torch.rand(4, channels, size, size), torch.arange(4) if classes else None
    mu, logvar = nets["encoder"](x, y)
    assert mu.shape == logvar.shape == (4, 5) and nets["D_z"](mu, y).shape == (4,)
    assert nets["encoder"].dense[0].in_features == math.prod(base) + classes
    assert nets["decoder"].base == base and nets["decoder"].dense[0].in_features == 5 + classes
    assert nets["decoder"](mu, y).shape == x.shape
    loss = vae.reconstruction(nets["decoder"](mu + logvar, y), x).mean()
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for name in ("encoder", "decoder") for p in nets[name].parameters())


def test_parameters_of_the_dense_networks():
    nets = bare(size=28, z_dim=20, hidden=500)
    count = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    middle = 500 * 501
    assert count == {"encoder": 785 * 500 + middle + 501 * 40, "decoder": 21 * 500 + middle + 501 * 784}


def test_a_side_that_does_not_halve_is_refused():
    with pytest.raises(data.InputError, match="--arch dense"):
        vae.kernels_of("conv", 31)


def test_labels_are_one_hot_columns():
    h, y = torch.randn(3, 4), torch.tensor([2, 0, 1])
    joined = vae.join(h, y, 3)
    assert torch.equal(joined[:, :4], h) and torch.equal(joined[:, 4:].long(), one_hot(y, 3))
    assert vae.join(h, None, 0) is h
    with pytest.raises(ValueError, match="labels"):
        vae.join(h, None, 3)


def test_samples():
    nets = bare(channels=3)
    seeded = lambda seed: torch.Generator().manual_seed(seed)
    images = vae.sample(nets, 25, generator=seeded(3), batch_size=10)
    assert images.shape == (25, 3, 8, 8) and images.min() >= 0 and images.max() <= 1
    z = torch.randn(10, 3, generator=seeded(3))
    torch.testing.assert_close(images[:10], nets["decoder"](z).sigmoid())
    assert torch.equal(vae.sample(nets, 6, generator=seeded(3), batch_size=10), images[:6])
    assert not torch.equal(vae.sample(nets, 6, generator=seeded(4), batch_size=10), images[:6])


def test_conditional_samples_follow_their_labels():
    nets = bare(classes=2)
    labels = torch.tensor([0, 1] * 6 + [1])
    images = vae.sample(nets, 13, labels, torch.Generator().manual_seed(0), batch_size=5)
    z = torch.cat([torch.randn(5, 3, generator=g) for g in [torch.Generator().manual_seed(0)] for _ in range(3)])[:13]
    torch.testing.assert_close(images, nets["decoder"](z, labels).sigmoid())
    in_turn = vae.sample(nets, 13, generator=torch.Generator().manual_seed(0), batch_size=5)
    torch.testing.assert_close(in_turn, nets["decoder"](z, torch.arange(13) % 2).sigmoid())
    with pytest.raises(ValueError, match="labels"):
        nets["decoder"](z)


def test_class_folders_sort_as_labels_do(tmp_path):
    """With 12 classes, folder names of two digits, so that the loader gives every image its own label back."""
    torch.manual_seed(0)
    nets = bare(classes=12)
    sizes = {"channels": 1, "size": 8, "z_dim": 3, "hidden": 16, "classes": 12}
    args = sizes | {"arch": "dense", "objective": "vae", "conditional": True}
    metrics.save_run(tmp_path / "run", "vae", args | {"batch_size": 5}, 1, nets, {})
    wanted = argparse.Namespace(resume=tmp_path / "run", out=tmp_path / "drawn", sample=25, seed=0, device="cpu")
    metrics.write_samples(wanted)
    assert sorted(path.name for path in wanted.out.iterdir()) == [f"{label:02}" for label in range(12)]
    images, labels = data.load(str(wanted.out), tmp_path, split="all")
    assert torch.bincount(labels).tolist() == [3] + [2] * 11
    drawn = vae.sample(nets, 25, torch.arange(25) % 12, torch.Generator().manual_seed(0), batch_size=5)
    for label in range(12):
        expected = drawn[torch.arange(25) % 12 == label].mul(255).add(0.5).byte()
        assert sorted(x.flatten().tolist() for x in images[labels == label]) == sorted(x.flatten().tolist() for x in expected)


# Training -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_update_by_hand(objective, conditional, patterns, tmp_path):
    """The networks after one update, from torch.distributions, a naive MMD and binary cross-entropy with labels 1 and 0."""
    more = ["--conditional"] if conditional else []
    vae.main(command(patterns, tmp_path / "run", "--objective", objective, "--mmd-weight", "50", *more, iters=1))
    trained = metrics.load_checkpoint(tmp_path / "run")["nets"]

    images, labels = data.load(str(patterns), patterns.parent)
    x, y = next(data.batches(images, 20, "cpu", seed=0, labels=labels))
    y = y if conditional else None
    torch.manual_seed(0)
    nets = bare(objective=objective, classes=2 if conditional else 0)
    encoder, decoder = nets["encoder"], nets["decoder"]
    opt = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    q = lambda seen: Independent(Normal(encoder(seen, y)[0], encoder(seen, y)[1].exp().sqrt()), 1)
    prior = Independent(Normal(torch.zeros(3), torch.ones(3)), 1)
    posterior = q(vae.corrupt(x, 0.1) if objective == "dvae" else x)
    z = posterior.rsample()
    loss = -Independent(Bernoulli(logits=decoder(z, y), validate_args=False), 3).log_prob(x).mean()
    if objective in ("vae", "dvae"):
        loss = loss + kl_divergence(posterior, prior).mean()
    if objective == "info":
        prior_z = torch.randn(20, 3)
        for rows in [torch.arange(20)] if y is None else [(y == label).nonzero()[:, 0] for label in (0, 1)]:
            both = torch.cat([z[rows], prior_z[rows]])
            kernel = (-(both[:, None] - both[None]).square().sum(2) / (2 * 3)).exp()  # bandwidth^2 = 3, the length of z
            sign = torch.cat([torch.ones(len(rows)), -torch.ones(len(rows))]) / len(rows)
            loss = loss + 50 * len(rows) / 20 * sign @ kernel @ sign
    loss.backward()
    opt.step()
    if objective == "aae":
        D_z, bce = nets["D_z"], binary_cross_entropy_with_logits
        opt_D, opt_E = (torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999)) for net in (D_z, encoder))
        z = q(x).rsample()
        opt_D.zero_grad()
        (bce(D_z(torch.randn(20, 3), y), torch.ones(20)) + bce(D_z(z.detach(), y), torch.zeros(20))).backward()
        opt_D.step()
        opt_E.zero_grad()
        bce(D_z(z, y), torch.ones(20)).backward()
        opt_E.step()
    assert trained.keys() == nets.keys()
    for name, net in nets.items():
        for key, value in net.state_dict().items():
            torch.testing.assert_close(trained[name][key], value, rtol=1e-4, atol=2e-5)


def test_denoising_corrupts_what_the_encoder_sees_and_not_the_target(patterns, tmp_path, monkeypatch):
    seen, targets = [], []
    forward, reconstruction = vae.Encoder.forward, vae.reconstruction
    monkeypatch.setattr(vae.Encoder, "forward", lambda self, x, y=None: seen.append(x) or forward(self, x, y))
    monkeypatch.setattr(vae, "reconstruction", lambda logits, x: targets.append(x) or reconstruction(logits, x))
    vae.main(command(patterns, tmp_path / "run", "--objective", "dvae", "--corrupt", "0.5", iters=1))
    images, _ = data.load(str(patterns), patterns.parent)
    clean = next(data.batches(images, 20, "cpu", seed=0))
    assert torch.equal(targets[0], clean)
    changed = (seen[0] != clean).double().mean().item()
    assert abs(changed - 0.25) < 5 * math.sqrt(0.25 * 0.75 / clean.numel())  # half of the replaced pixels were so before


def test_two_patterns_cost_a_bit_or_more(patterns, tmp_path, capsys):
    """Two equally likely images have an entropy of log 2, which no bound goes below; a trained one is near it, not at 44."""
    bounds = []
    for iters in (1, 1000):
        folder = tmp_path / str(iters)
        vae.main(command(patterns, folder, "--lr", "0.003", "--log-every", "200", iters=iters))
        row = last_row(folder)
        bounds.append(float(row["test_bound"]))
        assert float(row["test_reconstruction"]) + float(row["test_kl"]) == pytest.approx(bounds[-1], abs=2e-4)
        assert f"held-out bound {bounds[-1]:.2f} nats per image" in capsys.readouterr().out
    assert bounds[0] == pytest.approx(64 * math.log(2), rel=0.1)  # it starts knowing nothing
    assert math.log(2) < bounds[1] < 2


def test_a_label_saves_its_nats(patterns, tmp_path):
    """Told the class, nothing is left to be told: -log p(x|y) = 0 of two patterns, one per class."""
    vae.main(command(patterns, tmp_path / "run", "--lr", "0.01", "--conditional", "--log-every", "200", iters=400))
    assert 0 < float(last_row(tmp_path / "run")["test_bound"]) < 0.3
    run = metrics.load_run(tmp_path / "run")
    assert run.conditional and run.logits is None and run.args.classes == 2
    labels = torch.tensor([0, 1, 1, 0])
    expected = torch.zeros(4, 1, 8, 8)
    expected[labels == 0, :, :, :4] = 1
    expected[labels == 1, :, :, 4:] = 1
    assert (run.sample(4, labels=labels) - expected).abs().max() < 0.2

    vae.main(["--resume", str(tmp_path / "run"), "--sample", "6", "--out", str(tmp_path / "drawn")])
    images, labels = data.load(str(tmp_path / "drawn"), tmp_path, split="all")
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]
    for label, columns in ((0, slice(0, 4)), (1, slice(4, 8))):
        assert images[labels == label][:, :, :, columns].min() > 200


def test_pictures_carry_captions_and_the_latent_plane_is_drawn(patterns, tmp_path):
    vae.main(command(patterns, tmp_path / "run", "--objective", "dvae", "--z-dim", "2"))
    files = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*.png")}
    assert files == {"samples/000002.png", "reconstructions/000002.png", "latent-map.png", "latent-codes.png"}
    with Image.open(tmp_path / "run/samples/000002.png") as image:
        assert image.height == 8 * 10 + 2 + 16  # a grid of 8 rows of 8 pixels, frames of 2, and the line of text
        assert len(image.crop((0, 0, image.width, 16)).convert("L").getcolors()) > 1
    with Image.open(tmp_path / "run/reconstructions/000002.png") as image:
        assert image.height == 2 * 3 * 10 + 2 + 16  # twice: originals, corrupted, reconstructions
    with Image.open(tmp_path / "run/latent-map.png") as image:
        assert image.size[1] == 20 * 8 + 16  # 20 rows of 8 pixels without frames
