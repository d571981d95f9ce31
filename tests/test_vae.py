"""VAE, DVAE, InfoVAE and AAE against closed forms, quadrature and updates by hand; about 10 s."""

import argparse
import contextlib
import copy
import math

import pytest
import torch
from PIL import Image
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torchvision.transforms.functional import to_tensor

import data
import metrics
import vae


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def sizes(arch="dense", objective="vae", channels=1, size=8, z_dim=3, hidden=16, classes=0):
    return argparse.Namespace(**locals())


# ---- losses --------------------------------------------------------------------------------------


def test_kl_is_that_of_torch_distributions():
    mu, logvar = torch.randn(50, 7) * 3, torch.randn(50, 7) * 2
    q, p = Normal(mu, (logvar / 2).exp()), Normal(torch.zeros(7), torch.ones(7))
    torch.testing.assert_close(vae.kl(mu, logvar), kl_divergence(q, p).sum(1))
    assert torch.equal(vae.kl(torch.zeros(4, 7), torch.zeros(4, 7)), torch.zeros(4))


def test_reconstruction_is_the_bernoulli_cross_entropy_summed_over_pixels():
    """784 log 2 when nothing is known; a grey pixel is the mean over black and white ones."""
    logits, binary = torch.randn(6, 3, 4, 4) * 4, torch.rand(6, 3, 4, 4).round()
    expected = -Bernoulli(logits=logits).log_prob(binary).sum((1, 2, 3))
    torch.testing.assert_close(vae.reconstruction(logits, binary), expected)
    nothing_known = vae.reconstruction(torch.zeros(2, 1, 28, 28), torch.rand(2, 1, 28, 28))
    torch.testing.assert_close(nothing_known, torch.full((2,), 784 * math.log(2)))
    black, grey, white = (vae.reconstruction(logits, 0 * logits + v) for v in (0, 0.3, 1))
    torch.testing.assert_close(grey, 0.7 * black + 0.3 * white)


def test_mmd_to_normal_is_the_unbiased_form_in_the_limit_of_many_draws():
    """The means over N(0, I) by 200,000 draws."""
    def kernel(a, b):
        return (-(a - b).square().sum(-1) / (2 * s * s)).exp()

    z, s, n = torch.randn(9, 4).double() + 0.7, 1.7, 200_000
    draws = torch.randn(n, 4).double()
    among = (kernel(z[:, None], z).sum() - 9) / (9 * 8)
    cross, prior = kernel(z[:, None], draws).mean(0), kernel(*draws.view(2, -1, 4))
    error = (prior.std() / math.sqrt(n / 2) + 2 * cross.std() / math.sqrt(n)).item()
    expected = (among + prior.mean() - 2 * cross.mean()).item()
    assert error < 2e-3 and vae.mmd_to_normal(z, s).item() == pytest.approx(expected, abs=5 * error)
    a, b = (1 + 2 / s**2) ** -2, (1 + 1 / s**2) ** -2
    assert vae.mmd_to_normal(torch.zeros(5, 4), s).item() == pytest.approx(1 + a - 2 * b, rel=1e-5)


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


def test_the_bound_exceeds_the_exact_nll_by_the_kl_to_the_true_posterior():
    """-log p(x) of a one-dimensional z and four binary pixels, by quadrature."""
    nets, n = vae.build(sizes(size=2, z_dim=1)), 40_000
    for layer in (nets["encoder"].dense[-1], nets["decoder"].dense[-1]):
        layer.weight.data *= 5  # so that z tells something of x, and x of z
    x = torch.tensor([1.0, 0.0, 1.0, 1.0]).view(1, 1, 2, 2)
    with torch.no_grad():
        mu, logvar = (part.double() for part in nets["encoder"](x))
        z = torch.linspace(-12, 12, 24_001)
        logits = nets["decoder"](z[:, None]).double()
    likelihood, dz = Bernoulli(logits=logits).log_prob(x.double()).sum((1, 2, 3)), 24 / 24_000
    joint = likelihood + Normal(0.0, 1.0).log_prob(z.double())
    nll = -torch.logsumexp(joint + math.log(dz), 0)
    q = Normal(mu, (logvar / 2).exp()).log_prob(z.double())[0]
    gap = (q.exp() * (q - (joint + nll)) * dz).sum().item()
    assert gap > 0.05  # q is not the posterior, so the two sides differ
    parts = vae.held_out(nets, (255 * x).byte().expand(n, 1, 2, 2), None, 1000, seed=0)
    mean = (q.exp() * likelihood * dz).sum()
    spread = (q.exp() * (likelihood - mean) ** 2 * dz).sum().sqrt().item() / math.sqrt(n)
    assert sum(parts) == pytest.approx(nll.item() + gap, abs=5 * spread)
    divergence = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0))
    assert parts[1] == pytest.approx(divergence.item())


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


def test_the_dense_networks_have_two_hidden_layers():
    nets = vae.build(sizes(size=28, z_dim=20, hidden=500))
    shapes = [[p.shape for p in net.parameters() if p.dim() > 1] for net in nets.values()]
    assert shapes == [[(500, 784), (500, 500), (40, 500)], [(500, 20), (500, 500), (784, 500)]]


def test_conditional_samples_follow_their_labels():
    nets, generator = vae.build(sizes(classes=2)), torch.Generator()
    z = [torch.randn(5, 3, generator=generator.manual_seed(0))]
    z = torch.cat(z + [torch.randn(5, 3, generator=generator) for _ in range(2)])[:13]
    for labels in (torch.tensor([0, 1, 1] * 4 + [1]), None):
        images = vae.sample(nets, 13, labels, generator.manual_seed(0), batch_size=5)
        used = torch.arange(13) % 2 if labels is None else labels  # or in turn
        torch.testing.assert_close(images, nets["decoder"](z, used).sigmoid())


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
        rates = zip((both, *second), (0.01, 0.02, 0.03))
        return [torch.optim.SGD(group, lr) for group, lr in rates]

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

    def descend(optimiser, loss):
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

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
    descend(opt, loss)
    if objective == "aae":
        z = q(x).rsample()
        real, fake = D_z(torch.randn(20, 3), y), D_z(z.detach(), y)
        expected.append(bce(real, torch.ones(20)) + bce(fake, torch.zeros(20)))
        descend(second[0], expected[1])
        expected.append(bce(D_z(z, y), torch.ones(20)))
        descend(second[1], expected[2])
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


def test_denoising_corrupts_what_the_encoder_sees_and_not_the_target(
        patterns, tmp_path, monkeypatch):  # fmt: skip
    seen, targets = [], []
    forward, loss = vae.Encoder.forward, vae.reconstruction
    monkeypatch.setattr(vae.Encoder, "forward",
                        lambda net, x, y=None: seen.append(x) or forward(net, x, y))  # fmt: skip
    monkeypatch.setattr(vae, "reconstruction", lambda c, x: targets.append(x) or loss(c, x))
    train(patterns, tmp_path / "run", "--objective", "dvae", "--corrupt", "0.5", iters=1)
    images, _ = data.load(str(patterns), patterns.parent)
    assert torch.equal(targets[0], next(data.batches(images, 20, "cpu", seed=0)))
    changed = (seen[0] != targets[0]).double().mean().item()  # half of the replaced were so before
    assert abs(changed - 0.25) < 5 * math.sqrt(0.25 * 0.75 / seen[0].numel())


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
    drawn = tmp_path / "drawn"
    vae.main(["--resume", str(tmp_path / "run"), "--sample", "6", "--out", str(drawn),
              "--classes", "right"])  # fmt: skip
    images = [to_tensor(Image.open(path))[0] for path in drawn.glob("right/*.png")]
    assert len(images) == 6 and all(image[:, 4:].min() > 0.8 for image in images)


def test_the_length_of_z_follows_the_objective():
    sizes = {name: vae.parse_args(["--objective", name]).z_dim for name in vae.LOGS}
    assert sizes == {"vae": 20, "dvae": 20, "info": 8, "aae": 8}
