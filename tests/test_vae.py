"""VAE, DVAE, InfoVAE and AAE against closed forms, quadrature and updates by hand; about 10 s."""

import argparse
import contextlib
import copy
import csv
import math

import pytest
import torch
from PIL import Image
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.nn.functional import one_hot
from torchvision.transforms.functional import to_tensor

import data
import metrics
import vae


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def sizes(arch="dense", objective="vae", channels=1, size=8, z_dim=3, hidden=16, classes=0):
    return argparse.Namespace(**locals())


# ---- losses --------------------------------------------------------------------------------------


def test_kl_is_that_of_torch_distributions():
    mu, logvar = torch.randn(50, 7) * 3, torch.randn(50, 7) * 2
    q, p = Normal(mu, (logvar / 2).exp()), Normal(torch.zeros(7), torch.ones(7))
    torch.testing.assert_close(vae.kl(mu, logvar), kl_divergence(q, p).sum(1))
    assert torch.equal(vae.kl(torch.zeros(4, 7), torch.zeros(4, 7)), torch.zeros(4))


def test_reconstruction_is_the_bernoulli_cross_entropy_summed_over_pixels():
    logits, binary = torch.randn(6, 3, 4, 4) * 4, torch.rand(6, 3, 4, 4).round()
    expected = -Bernoulli(logits=logits).log_prob(binary).sum((1, 2, 3))
    torch.testing.assert_close(vae.reconstruction(logits, binary), expected)
    nothing_known = vae.reconstruction(torch.zeros(2, 1, 28, 28), torch.rand(2, 1, 28, 28))
    torch.testing.assert_close(nothing_known, torch.full((2,), 784 * math.log(2)))


def test_grey_values_stand_for_images_binarised_at_random():
    """The mean over all 2^4 binary images, weighted by their chance given the grey values."""
    logits, grey = torch.randn(1, 1, 2, 2) * 2, torch.rand(1, 1, 2, 2)
    images = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4).view(16, 1, 2, 2)
    chance = Bernoulli(grey).log_prob(images).sum((1, 2, 3)).exp()
    mean = (chance * vae.reconstruction(logits.expand(16, 1, 2, 2), images)).sum()
    torch.testing.assert_close(vae.reconstruction(logits, grey)[0], mean)


def mmd_by_hand(z, draws, s):
    """The unbiased form, with 200,000 draws of N(0, I) for its means -> value, standard error."""
    def kernel(a, b):
        return (-(a - b).square().sum(-1) / (2 * s * s)).exp()

    n, half = len(z), draws.view(2, -1, z.shape[1])
    among = sum(kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j)
    cross = torch.stack([kernel(a, draws) for a in z]).mean(0)
    prior = kernel(*half)
    error = prior.std() / math.sqrt(len(prior)) + 2 * cross.std() / math.sqrt(len(cross))
    return (among / (n * (n - 1)) + prior.mean() - 2 * cross.mean()).item(), error.item()


def test_mmd_to_normal_is_the_unbiased_form_in_the_limit_of_many_draws():
    z, s = torch.randn(9, 4).double() + 0.7, 1.7
    expected, error = mmd_by_hand(z, torch.randn(200_000, 4).double(), s)
    assert error < 2e-3
    assert vae.mmd_to_normal(z, s).item() == pytest.approx(expected, abs=5 * error)
    nothing = vae.mmd_to_normal(torch.zeros(5, 4), s).item()
    a, b = (1 + 2 / s**2) ** -2, (1 + 1 / s**2) ** -2
    assert nothing == pytest.approx(1 + a - 2 * b, rel=1e-5)
    torch.autograd.gradcheck(lambda z: vae.mmd_to_normal(z, s), z.requires_grad_())


@pytest.mark.parametrize("classes", [1, 10])
def test_mmd_to_normal_has_no_bias(classes):
    """Over batches of codes that are N(0, I) its mean is 0; biased it would be 0.01 to 0.12."""
    labels = torch.arange(100) % classes if classes > 1 else None
    values = torch.stack([vae.mmd_to_normal(torch.randn(100, 20), math.sqrt(20), labels)
                          for _ in range(200)])  # fmt: skip
    assert values.std() > 0 and abs(values.mean()) < 5 * values.std() / math.sqrt(200)
    assert values.std() < 0.005


def test_mmd_of_labelled_codes_is_that_of_each_class():
    z, labels = torch.randn(10, 3), torch.tensor([0, 2, 2, 0, 2, 5, 5, 2, 2, 7])
    each = [(labels == c).sum() / 10 * vae.mmd_to_normal(z[labels == c], 1.7) for c in (0, 2, 5)]
    torch.testing.assert_close(vae.mmd_to_normal(z, 1.7, labels), sum(each))  # class 7 has one row
    assert vae.mmd_to_normal(z[:1], 1.7) == 0


def test_adversarial_losses():
    zero, prior, code = torch.zeros(9), torch.randn(50) * 5, torch.randn(50) * 5
    assert vae.d_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert vae.e_loss(zero).item() == pytest.approx(math.log(2))
    expected = bce(prior, torch.ones(50)) + bce(code, torch.zeros(50))
    torch.testing.assert_close(vae.d_loss(prior, code), expected)
    torch.testing.assert_close(vae.e_loss(code), bce(code, torch.ones(50)))


def test_corruption_is_salt_and_pepper():
    x = torch.full((50, 3, 40, 40), 0.5)
    noisy = vae.corrupt(x, 0.3)
    assert torch.equal(x, torch.full_like(x, 0.5))
    assert (noisy == noisy[:, :1]).all()  # whole pixels
    values = noisy[:, 0]
    for value, share in ((0.0, 0.15), (1.0, 0.15), (0.5, 0.7)):
        spread = math.sqrt(share * (1 - share) / values.numel())
        assert abs((values == value).double().mean().item() - share) < 5 * spread
    assert not torch.equal(vae.corrupt(x, 0.3), noisy)


def test_z_has_the_moments_of_q_and_passes_gradients():
    mu = torch.tensor([[2.0, -1.0]], requires_grad=True)
    logvar = torch.tensor([[0.0, math.log(9)]], requires_grad=True)
    z = vae.draw_z(mu.expand(40_000, 2), logvar.expand(40_000, 2))
    torch.testing.assert_close(z.mean(0), torch.tensor([2.0, -1.0]), atol=5 * 3 / 200, rtol=0)
    torch.testing.assert_close(z.std(0), torch.tensor([1.0, 3.0]), atol=0.06, rtol=0)
    d_mu, d_logvar = torch.autograd.grad(z.sum(0)[1], (mu, logvar))
    eps = (z[:, 1] - mu[0, 1]) / 3
    torch.testing.assert_close(d_mu, torch.tensor([[0.0, 40_000.0]]))
    assert d_logvar[0, 1].item() == pytest.approx((1.5 * eps).sum().item(), rel=1e-3)


class Posterior(nn.Module):
    """The same q(z|x) = N(0.4, 0.8^2) for every image."""

    def forward(self, x, y=None):
        return torch.full((len(x), 1), 0.4), torch.full((len(x), 1), 2 * math.log(0.8))


class Line(nn.Module):
    """p(x|z): Bernoulli pixels with logits w z + b."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.5, -2.0, 0.7, 3.0]))
        self.b = nn.Parameter(torch.tensor([0.1, 0.5, -1.0, 0.3]))

    def forward(self, z, y=None):
        return (z * self.w + self.b).view(-1, 1, 2, 2)


def test_the_bound_exceeds_the_exact_nll_by_the_kl_to_the_true_posterior():
    """-log p(x) of a one-dimensional z and four binary pixels, by quadrature."""
    x = torch.tensor([1.0, 0.0, 1.0, 1.0]).view(1, 1, 2, 2)
    decoder, n = Line(), 40_000
    z = torch.linspace(-12, 12, 24_001, dtype=torch.double)
    dz = z[1] - z[0]
    logits = z[:, None] * decoder.w + decoder.b
    likelihood = Bernoulli(logits=logits).log_prob(x.flatten()).sum(1)
    joint = likelihood + Normal(0.0, 1.0).log_prob(z)
    nll = -torch.logsumexp(joint + dz.log(), 0)
    q = Normal(0.4, 0.8).log_prob(z)
    gap = (q.exp() * (q - (joint + nll)) * dz).sum().item()
    assert gap > 0.05  # q is not the posterior, so the two sides differ
    images, nets = (255 * x).byte().expand(n, 1, 2, 2), {"encoder": Posterior(), "decoder": decoder}
    parts = vae.held_out(nets, images, None, 1000, seed=0)
    mean = (q.exp() * likelihood * dz).sum()
    spread = (q.exp() * (likelihood - mean) ** 2 * dz).sum().sqrt().item() / math.sqrt(n)
    assert sum(parts) == pytest.approx(nll.item() + gap, abs=5 * spread)
    assert parts[1] == pytest.approx(kl_divergence(Normal(0.4, 0.8), Normal(0.0, 1.0)).item())
    again, other = (vae.held_out(nets, images, None, 1000, seed) for seed in (0, 1))
    assert parts == again and parts[0] != other[0]


# ---- networks and samples ------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [0, 10])
@pytest.mark.parametrize("arch, channels, size, base", [
    ("dense", 1, 28, (28, 28, 1)), ("dense", 3, 32, (32, 32, 3)), ("dense", 1, 17, (17, 17, 1)),
    ("conv", 1, 28, (7, 7, 64)), ("conv", 3, 32, (4, 4, 128)), ("conv", 3, 64, (4, 4, 256)),
])  # fmt: skip
def test_shapes(arch, channels, size, base, classes):
    nets = vae.build(sizes(arch, "aae", channels, size, z_dim=5, classes=classes))
    x, y = torch.rand(4, channels, size, size), torch.arange(4) if classes else None
    mu, logvar = nets["encoder"](x, y)
    assert mu.shape == logvar.shape == (4, 5) and nets["D_z"](mu, y).shape == (4,)
    assert nets["encoder"].dense[0].in_features == math.prod(base) + classes
    assert nets["decoder"].base == base and nets["decoder"].dense[0].in_features == 5 + classes
    assert nets["decoder"](mu, y).shape == x.shape
    vae.reconstruction(nets["decoder"](mu + logvar, y), x).mean().backward()
    weights = [*nets["encoder"].parameters(), *nets["decoder"].parameters()]
    assert all(p.grad.abs().sum() > 0 for p in weights)


def test_parameters_of_the_dense_networks():
    nets = vae.build(sizes(size=28, z_dim=20, hidden=500))
    count = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    middle = 500 * 501
    encoder, decoder = 785 * 500 + middle + 501 * 40, 21 * 500 + middle + 501 * 784
    assert count == {"encoder": encoder, "decoder": decoder}


def test_a_side_that_does_not_halve_is_refused():
    with pytest.raises(data.InputError, match="--arch dense"):
        vae.kernels_of("conv", 31)


def test_labels_are_one_hot_columns():
    h, y = torch.randn(3, 4), torch.tensor([2, 0, 1])
    joined = vae.join(h, y, 3)
    assert torch.equal(joined[:, :4], h) and torch.equal(joined[:, 4:].long(), one_hot(y, 3))
    assert vae.join(h, None, 0) is h


def test_samples():
    nets = vae.build(sizes(channels=3))
    images = vae.sample(nets, 25, generator=seeded(3), batch_size=10)
    assert images.shape == (25, 3, 8, 8) and images.min() >= 0 and images.max() <= 1
    assert len(images.unique(dim=0)) == 25
    z = torch.randn(10, 3, generator=seeded(3))
    torch.testing.assert_close(images[:10], nets["decoder"](z).sigmoid())
    few = vae.sample(nets, 6, generator=seeded(3), batch_size=10)
    assert torch.equal(few, images[:6])
    assert not torch.equal(vae.sample(nets, 6, generator=seeded(4), batch_size=10), few)


def test_conditional_samples_follow_their_labels():
    nets = vae.build(sizes(classes=2))
    generator, labels = seeded(), torch.tensor([0, 1] * 6 + [1])
    z = torch.cat([torch.randn(5, 3, generator=generator) for _ in range(3)])[:13]
    images = vae.sample(nets, 13, labels, seeded(), batch_size=5)
    torch.testing.assert_close(images, nets["decoder"](z, labels).sigmoid())
    in_turn = vae.sample(nets, 13, generator=seeded(), batch_size=5)
    torch.testing.assert_close(in_turn, nets["decoder"](z, torch.arange(13) % 2).sigmoid())


# ---- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("objective", ["vae", "dvae", "info", "aae"])
def test_one_update_by_hand(objective, conditional):
    """By torch.distributions, a loop over classes, and binary cross-entropy on labels 1 and 0."""
    nets = vae.build(sizes(objective=objective, classes=2 if conditional else 0))
    ours, x = copy.deepcopy(nets), torch.rand(20, 1, 8, 8)
    y = torch.arange(20) % 2 if conditional else None
    seen = vae.corrupt(x, 0.5) if objective == "dvae" else x

    def optimisers(nets):
        both = [*nets["encoder"].parameters(), *nets["decoder"].parameters()]
        second = [nets[name].parameters() for name in ("D_z", "encoder") if "D_z" in nets]
        return [torch.optim.SGD(group, 0.01) for group in (both, *second)]

    torch.manual_seed(1)
    more, off = [*ours.values(), *optimisers(ours)], contextlib.nullcontext()
    if objective == "aae":
        losses = vae.update_aae(*more, x, y, off)
    elif objective == "info":
        losses = vae.update_info(*more, x, y, 50, off)
    else:
        losses = vae.update_vae(*more, x, seen, y, off)

    torch.manual_seed(1)
    encoder, decoder, D_z = nets["encoder"], nets["decoder"], nets.get("D_z")
    opt, *second = optimisers(nets)

    def q(images):
        mu, logvar = encoder(images, y)
        return Independent(Normal(mu, logvar.exp().sqrt()), 1)

    posterior = q(seen)
    z = posterior.rsample()
    p = Independent(Bernoulli(logits=decoder(z, y), validate_args=False), 3)
    expected = [-p.log_prob(x).mean()]
    loss = expected[0]
    if objective in ("vae", "dvae"):
        prior = Independent(Normal(torch.zeros(3), torch.ones(3)), 1)
        expected.append(kl_divergence(posterior, prior).mean())
        loss = loss + expected[1]
    if objective == "info":  # bandwidth^2 = 3, the length of z; here of two equal classes
        parts = [z] if y is None else [z[y == 0], z[y == 1]]
        expected.append(sum(vae.mmd_to_normal(part, math.sqrt(3)) for part in parts) / len(parts))
        loss = loss + 50 * expected[1]
    opt.zero_grad()
    loss.backward()
    opt.step()
    if objective == "aae":
        z = q(x).rsample()
        real, fake = D_z(torch.randn(20, 3), y), D_z(z.detach(), y)
        expected.append(bce(real, torch.ones(20)) + bce(fake, torch.zeros(20)))
        second[0].zero_grad()
        expected[1].backward()
        second[0].step()
        expected.append(bce(D_z(z, y), torch.ones(20)))
        second[1].zero_grad()
        expected[2].backward()
        second[1].step()
    torch.testing.assert_close(losses, torch.stack(expected).detach(), rtol=1e-4, atol=1e-4)
    for name, net in nets.items():
        for p, value in zip(ours[name].parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(p, value, rtol=1e-4, atol=2e-5)
            assert p.requires_grad


@pytest.fixture(scope="module")
def patterns(tmp_path_factory):
    """Eight-pixel squares of two classes: black with a white left half, and the negative."""
    folder = tmp_path_factory.mktemp("data") / "patterns"
    for label, name in enumerate(["left", "right"]):
        image = Image.new("L", (8, 8), 255 * label)
        image.paste(255 * (1 - label), (0, 0, 4, 8))
        for split, n in (("train", 40), ("test", 100)):
            (folder / split / name).mkdir(parents=True)
            for i in range(n):
                image.save(folder / split / name / f"{i}.png")
    return folder


def train(patterns, out, *more, iters=2):
    flags = f"--data-dir {patterns.parent} --out {out} --iters {iters} --log-every 200 --device cpu"
    small = "--batch-size 20 --hidden 16 --no-amp"
    vae.main(["--dataset", str(patterns), *flags.split(), *small.split(), *more])
    return metrics.load_checkpoint(out)


def test_defaults_and_rates_of_aae(patterns, tmp_path):
    found = train(patterns, tmp_path / "aae", "--objective", "aae", "--lr", "0.002")
    assert found["args"]["z_dim"] == 8
    groups = {k: v["param_groups"][0] for k, v in found["optimisers"].items()}
    assert {k: group["lr"] for k, group in groups.items()} == {
        "autoencoder": 0.002, "D_z": 0.001, "encoder": 0.001}  # fmt: skip
    assert groups["encoder"]["betas"] == (0.5, 0.999)
    args = vae.parse_args(["--objective", "info"])
    assert (args.z_dim, args.mmd_weight) == (20, 100)
    assert vae.parse_args(["--objective", "aae", "--z-dim", "5"]).z_dim == 5


def test_denoising_corrupts_what_the_encoder_sees_and_not_the_target(
        patterns, tmp_path, monkeypatch):  # fmt: skip
    seen, targets = [], []
    forward, loss = vae.Encoder.forward, vae.reconstruction
    monkeypatch.setattr(vae.Encoder, "forward",
                        lambda net, x, y=None: seen.append(x) or forward(net, x, y))  # fmt: skip
    monkeypatch.setattr(vae, "reconstruction", lambda c, x: targets.append(x) or loss(c, x))
    train(patterns, tmp_path / "run", "--objective", "dvae", "--corrupt", "0.5", iters=1)
    images, _ = data.load(str(patterns), patterns.parent)
    clean = next(data.batches(images, 20, "cpu", seed=0))
    assert torch.equal(targets[0], clean)
    changed = (seen[0] != clean).double().mean().item()  # half of the replaced were so before
    assert abs(changed - 0.25) < 5 * math.sqrt(0.25 * 0.75 / clean.numel())
    with Image.open(tmp_path / "run/reconstructions.png") as image:
        rows = to_tensor(image)[0, 2:].unflatten(0, (3, 10))[:, :8]  # originals, corrupted, decoded
    assert set(rows[0].unique().tolist()) == {0, 1} and not torch.equal(rows[0], rows[1])


def test_two_patterns_cost_a_bit_or_more(patterns, tmp_path, capsys):
    """Two equally likely images have an entropy of log 2, which no bound goes below."""
    bounds = []
    for iters in (1, 800):
        train(patterns, tmp_path / str(iters), "--lr", "0.003", "--z-dim", "3", iters=iters)
        line, = [line for line in capsys.readouterr().out.splitlines() if "held-out" in line]
        bounds.append(float(line.split("= ")[1].split()[0]))
        assert line.startswith("held-out, 200 images")
    assert bounds[0] == pytest.approx(64 * math.log(2), rel=0.1)  # it starts knowing nothing
    assert math.log(2) < bounds[1] < 2
    with open(tmp_path / "800/log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["loss_reconstruction"]) < 3 and float(rows[-1]["loss_kl"]) > 0


def test_a_label_saves_its_nats_and_draws_its_class(patterns, tmp_path, capsys):
    """Told the class, nothing is left to tell: -log p(x|y) = 0 of two patterns, one a class."""
    train(patterns, tmp_path / "run", "--lr", "0.01", "--conditional", "--z-dim", "3", iters=400)
    line, = [line for line in capsys.readouterr().out.splitlines() if "held-out" in line]
    assert 0 < float(line.split("= ")[1].split()[0]) < 0.3
    run = metrics.load_run(tmp_path / "run")
    assert run.conditional and run.logits is None and run.classes == ["left", "right"]
    labels, expected = torch.tensor([0, 1, 1, 0]), torch.zeros(4, 1, 8, 8)
    expected[labels == 0, :, :, :4] = 1
    expected[labels == 1, :, :, 4:] = 1
    assert (run.sample(4, labels=labels) - expected).abs().max() < 0.2
    with Image.open(tmp_path / "run/samples/000400.png") as image:
        assert image.size == (2 * 10 + 2, 8 * 10 + 2)  # a column a class

    drawn = tmp_path / "drawn"
    vae.main(["--resume", str(tmp_path / "run"), "--sample", "6", "--out", str(drawn),
              "--classes", "right"])  # fmt: skip
    assert [path.name for path in drawn.iterdir()] == ["right"]
    images = [to_tensor(Image.open(path))[0] for path in drawn.rglob("*.png")]
    assert len(images) == 6 and all(image[:, 4:].min() > 0.8 for image in images)


def test_one_class_cannot_be_conditional(patterns, tmp_path, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted(patterns.rglob("*.png"))):
        (flat / f"{i}.png").hardlink_to(path)
    with pytest.raises(SystemExit):
        train(flat, tmp_path / "run", "--conditional")
    assert "without --conditional" in capsys.readouterr().err
