"""GRAN against its equations, Table 5 and DCGAN; about 5 s."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.transforms.functional import pil_to_tensor

import data
import gran
import metrics


def small(steps=3, noise="once", tie=False, kernels=(6, 4), channels=1, size=8, z_dim=5):
    torch.manual_seed(0)
    return gran.Generator(list(kernels), channels, size, z_dim, steps, noise, tie)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def conv(k_in, k_out):
    return 25 * k_in * k_out + k_out


@pytest.mark.parametrize("dataset, channels, size, kernels, z_dim", [
    ("mnist", 1, 28, [80, 40, 1], 60),
    ("cifar10", 3, 32, [1024, 512, 216, 3], 100),
    ("lsun-church", 3, 64, [1024, 512, 216, 128, 3], 100),
    ("imagenet", 3, 64, [3072, 1536, 648, 384, 3], 100),
])  # fmt: skip
def test_table_5(dataset, channels, size, kernels, z_dim):
    args = gran.parse_args(["--dataset", dataset, "--steps", "2"])
    assert (args.channels, args.size) == (channels, size)
    with torch.device("meta"):  # shapes and counts without the memory: ImageNet's networks have 400 million weights
        G, D = gran.build(args).values()
        images = G(G.draw_z(7))
        assert images.shape == (7, channels, size, size)
        assert D(images).shape == (7,)
        assert G.f(torch.zeros(7, 2 * z_dim)).shape == (7, channels, size, size)
        assert G.g(images).shape == (7, z_dim)
    maps = kernels[0] * (size // 2 ** (len(kernels) - 1)) ** 2  # 80 x 7 x 7, 1024 x 4 x 4, ...
    pairs = list(itertools.pairwise(kernels))
    norms = 2 * sum(kernels[:-1])
    counts = {
        "W": z_dim * z_dim + z_dim,
        "f": 2 * z_dim * maps + maps + norms + sum(25 * a * b for a, b in pairs) + channels,  # a bias at the image only
        "g": sum(conv(b, a) for a, b in pairs) + norms + maps * z_dim + z_dim + 2 * z_dim,
    }
    for name, count in counts.items():
        assert sum(p.numel() for p in getattr(G, name).parameters()) == count
    norms_d = norms - 2 * kernels[-2]  # DCGAN leaves D's first layer without
    assert sum(p.numel() for p in D.parameters()) == sum(conv(b, a) for a, b in pairs) + norms_d + maps + 1


def test_a_size_that_does_not_halve_is_refused():
    with pytest.raises(data.InputError, match="--size"):
        gran.table_5("folder", 3, 28)


def test_sizes_follow_the_images():
    assert gran.table_5("telugu", 1, 32) == ([80, 40], 60)
    assert gran.table_5("faces", 3, 32) == ([1024, 512, 216], 100)
    assert gran.table_5("celeba", 3, 64) == ([1024, 512, 216, 128], 100)


def test_one_step_is_dcgan_up_to_one_dense_layer():
    """T = 1: an ordinary DCGAN generator after tanh(W z + b); h_c,0 = 0 drops half of f's dense layer."""
    G = gran.build(gran.parse_args(["--dataset", "mnist", "--steps", "1"]))["G"]
    dcgan = nn.Sequential(
        nn.Linear(60, 80 * 7 * 7), nn.Unflatten(1, (80, 7, 7)),
        nn.BatchNorm2d(80), nn.ReLU(), nn.ConvTranspose2d(80, 40, 5, 2, 2, 1, bias=False),
        nn.BatchNorm2d(40), nn.ReLU(), nn.ConvTranspose2d(40, 1, 5, 2, 2, 1), nn.Sigmoid(),
    )  # fmt: skip
    kernels_first = torch.arange(7 * 7 * 80).reshape(7, 7, 80).permute(2, 0, 1).flatten()  # of rows that have them last
    dcgan[0].weight.data, dcgan[0].bias.data = G.f.dense.weight.data[kernels_first, :60], G.f.dense.bias.data[kernels_first]
    dcgan[4].load_state_dict(G.f.ups[0].state_dict())
    dcgan[7].load_state_dict(G.f.ups[1].state_dict())
    z = torch.randn(1, 20, 60)
    torch.testing.assert_close(G(z), dcgan(torch.tanh(z[0] @ G.W.weight.T + G.W.bias)))


@pytest.mark.parametrize("noise", ["once", "per-step"])
def test_algorithm_1(noise):
    """The canvas unrolled by hand from W, f and g."""
    G = small(steps=3, noise=noise)
    z = G.draw_z(10)
    h = [torch.tanh(F.linear(z_t, G.W.weight, G.W.bias)) for z_t in z]
    dC1 = G.f(torch.cat([h[0], torch.zeros(10, 5)], 1))
    dC2 = G.f(torch.cat([h[1], G.g(dC1)], 1))
    dC3 = G.f(torch.cat([h[2], G.g(dC2)], 1))
    torch.testing.assert_close(G(z), 1 / (1 + torch.exp(-(dC1 + dC2 + dC3))))
    torch.testing.assert_close(G(z, every_step=True), torch.sigmoid(torch.stack([dC1, dC1 + dC2, dC1 + dC2 + dC3])))


def test_h_c_tells_images_apart_whatever_its_bias():
    """Each unit of h_c is tanh of what has mean 0 and variance 1 over the batch: never saturated alike for all images."""
    g = small().g
    with torch.no_grad():
        g.dense.bias.fill_(50)
        before_tanh = torch.atanh(g(torch.randn(500, 1, 8, 8)).double())
    torch.testing.assert_close(before_tanh.mean(0), torch.zeros(5).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(before_tanh.var(0, correction=0), torch.ones(5).double(), atol=1e-2, rtol=0)


def test_noise_once_or_per_step():
    once, anew = small(noise="once").draw_z(1000), small(noise="per-step").draw_z(1000)
    assert once.shape == anew.shape == (3, 1000, 5)
    assert torch.equal(once[0], once[1]) and torch.equal(once[0], once[2])
    correlation = (anew[0] * anew[1]).mean()
    assert abs(correlation) < 5 / math.sqrt(5000)  # independent: N(0, 1 / 5000)


def test_tied_kernels_make_g_the_transpose_of_f():
    """<up x, y> = <x, down y> for every layer pair, biases aside, when and only when the kernels are tied."""
    G, free = small(tie=True), small(tie=False)
    assert G.g.downs[0].weight is G.f.ups[1].weight and G.g.downs[1].weight is G.f.ups[0].weight
    assert sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in G.parameters()) == 25 * (6 * 4 + 4 * 1)
    for net, same in ((G, True), (free, False)):
        with torch.no_grad():
            net.g.downs[1].bias.zero_()
            x, y = torch.randn(2, 6, 2, 2), torch.randn(2, 4, 4, 4)
            inner_up, inner_down = (net.f.ups[0](x) * y).sum(), (x * net.g.downs[1](y)).sum()
        assert torch.isclose(inner_up, inner_down, rtol=1e-4) == same


def test_losses():
    zero = torch.zeros(9)
    assert gran.d_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert gran.g_loss(zero).item() == pytest.approx(math.log(2))
    real, fake = torch.randn(50) * 5, torch.randn(50) * 5
    bce = F.binary_cross_entropy_with_logits
    expected = bce(real, torch.ones(50)) + bce(fake, torch.zeros(50))
    torch.testing.assert_close(gran.d_loss(real, fake), expected)
    torch.testing.assert_close(gran.g_loss(fake), bce(fake, torch.ones(50)))
    assert gran.d_loss(torch.tensor([-1e4]), torch.tensor([1e4])) == 2e4  # no overflow where log(sigmoid) is -inf


def test_every_weight_learns():
    """With T > 1 each weight of G gets a gradient through the recurrence."""
    G, D = small(), gran.Discriminator([6, 4], 1, 8)
    gran.g_loss(D(G(G.draw_z(10)))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in G.named_parameters() if "norms" in name)
    assert all(p.grad is not None for p in G.parameters())


def test_two_updates_by_hand(tmp_path):
    """D on labels 1 and 0, then G on label 1 through the D just updated; each has its own rate, betas 0.5 and 0.999."""
    images = torch.randint(256, (30, 8, 8), generator=seeded()).byte()
    (tmp_path / "images").mkdir()
    for k, image in enumerate(images.numpy()):
        Image.fromarray(image).save(tmp_path / f"images/{k:02}.png")
    run = tmp_path / "run"
    common = ["--dataset", str(tmp_path / "images"), "--data-dir", str(tmp_path), "--out", str(run), "--device", "cpu", "--no-amp"]
    gran.main([*common, "--steps", "3", "--iters", "1", "--batch-size", "10", "--lr-g", "1e-3", "--lr-d", "3e-3"])
    checkpoints = [metrics.load_checkpoint(run)]
    gran.main(["--resume", str(run), "--iters", "2"])
    checkpoints.append(metrics.load_checkpoint(run))

    served = data.batches(data.load(str(tmp_path / "images"), tmp_path)[0], 10, "cpu", seed=0)
    torch.manual_seed(0)
    nets = gran.build(gran.parse_args(["--resume", str(run)]))
    G, D, bce = nets["G"], nets["D"], F.binary_cross_entropy_with_logits
    opt_G, opt_D = (torch.optim.Adam(net.parameters(), lr, betas=(0.5, 0.999)) for net, lr in ((G, 1e-3), (D, 3e-3)))
    for x, trained in zip(served, checkpoints):
        fake = G(torch.randn(1, 10, 60).expand(3, 10, 60))
        opt_D.zero_grad()
        (bce(D(x), torch.ones(10)) + bce(D(fake.detach()), torch.zeros(10))).backward()
        opt_D.step()
        opt_G.zero_grad()
        bce(D(fake), torch.ones(10)).backward()
        opt_G.step()
        for name, optimiser in (("G", opt_G), ("D", opt_D)):
            assert trained["optimisers"][name]["param_groups"][0]["betas"] == (0.5, 0.999)
            for ours, (key, p) in zip(trained["optimisers"][name]["state"].values(), nets[name].named_parameters(), strict=True):
                mean = optimiser.state[p]["exp_avg"]  # of the gradients
                torch.testing.assert_close(ours["exp_avg"], mean, rtol=1e-3, atol=1e-5)
                sure = mean.abs() > 1e-4  # a bias before batch norm has a gradient of mere rounding, of which Adam makes a whole step
                torch.testing.assert_close(trained["nets"][name][key][sure], p.data[sure], rtol=0, atol=1e-4)
            nets[name].load_state_dict(trained["nets"][name])  # with its biases: others may put a unit across ReLU's kink


def test_canvases_and_samples():
    nets = {"G": small(steps=3)}
    frames = gran.canvases(nets, 6, generator=seeded(3), batch_size=10)
    longer = gran.canvases(nets, 6, steps=5, generator=seeded(3), batch_size=10)
    assert frames.shape == (3, 6, 1, 8, 8) and longer.shape == (5, 6, 1, 8, 8)
    assert torch.equal(frames, longer[:3])  # drawing on goes on from the same canvas (Table 4)
    assert frames.min() >= 0 and frames.max() <= 1
    assert torch.equal(gran.sample(nets, 6, generator=seeded(3), batch_size=10), frames[-1])
    assert not torch.equal(gran.sample(nets, 6, generator=seeded(4), batch_size=10), frames[-1])


def test_more_than_one_batch():
    nets = {"G": small(steps=3)}
    many = gran.sample(nets, 25, generator=seeded(3), batch_size=10)
    assert len(many) == len(many.unique(dim=0)) == 25  # no batch is there twice
    assert torch.equal(many[:6], gran.sample(nets, 6, generator=seeded(3), batch_size=10))
    assert torch.equal(many, gran.canvases(nets, 25, generator=seeded(3), batch_size=10)[-1])


@pytest.mark.parametrize("n, most", [(30, 2**28), (3, 2**28), (30, 64 * 11)])
def test_nearest_is_a_sample_a_row_and_its_seven_nearest_training_images(tmp_path, n, most):
    """Fewer where there are fewer; the same if searched eleven images at a time. The first training images are the last
    samples, rounded to bytes: each its own nearest."""
    nets, args = {"G": small()}, gran.parse_args(["--batch-size", "16", "--seed", "2"])
    nn.init.normal_(nets["G"].f.ups[-1].weight)  # samples far apart
    drawn = gran.sample(nets, 16, generator=seeded(2), batch_size=16) * 255
    images = torch.cat([drawn.flip(0)[:8].round().byte(), torch.randint(256, (22, 1, 8, 8), generator=seeded()).byte()])[:n]
    gran.draw_nearest(nets, args, images, tmp_path, most)
    k = min(7, n)
    nearest = torch.cdist(drawn.flatten(1).double(), images.flatten(1).double()).argsort()[:, :k]
    assert nearest[-3:, 0].tolist() == [2, 1, 0]
    grid = pil_to_tensor(Image.open(tmp_path / "nearest.png"))[0]
    assert grid.shape == (16 * 10 + 2, (1 + k) * 10 + 2)
    rows = grid[:-2, :-2].unfold(0, 10, 10).unfold(1, 10, 10)[:, :, 2:, 2:]  # (16, 1 + k, 8, 8), 2 px between
    torch.testing.assert_close(rows[:, 0].float(), drawn[:, 0], rtol=0, atol=1)
    assert torch.equal(rows[:, 1:], images[nearest, 0])


def test_a_run_of_one_step_cannot_draw_with_more():
    """Its g was never trained."""
    nets = {"G": small(steps=1)}
    assert torch.equal(gran.sample(nets, 4, generator=seeded(), steps=1), gran.sample(nets, 4, generator=seeded()))
    with pytest.raises(data.InputError, match="untrained g"):
        gran.sample(nets, 4, steps=2)


def test_a_batch_has_its_own_statistics():
    """No running averages: eval and train draw the same, and D scores a batch by that batch."""
    G, D = small(), gran.Discriminator([6, 4], 1, 8)
    z = G.draw_z(10)
    assert torch.equal(G.train()(z), G.eval()(z))
    assert not any("running" in name for net in (G, D) for name in net.state_dict())
