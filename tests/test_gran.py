"""GRAN against its equations, Table 5 and DCGAN."""

import argparse
import contextlib
import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import data
import gran


def small(steps=3, noise="once", tie=False, kernels=(6, 4), channels=1, size=8, z_dim=5):
    torch.manual_seed(0)
    return gran.Generator(list(kernels), channels, size, z_dim, steps, noise, tie)


def paper(dataset, channels, size, steps=2, ema=0):
    """The networks of Table 5."""
    return gran.build(argparse.Namespace(dataset=dataset, channels=channels, size=size, steps=steps,
                                         noise="once", tie=False, ema=ema))


@pytest.mark.parametrize("dataset, channels, size, kernels, z_dim", [
    ("mnist", 1, 28, [80, 40, 1], 60),
    ("cifar10", 3, 32, [1024, 512, 216, 3], 100),
    ("lsun-church", 3, 64, [1024, 512, 216, 128, 3], 100),
    ("imagenet", 3, 64, [3072, 1536, 648, 384, 3], 100),
])
def test_table_5(dataset, channels, size, kernels, z_dim):
    with torch.device("meta"):  # shapes and counts without the memory
        G, D = paper(dataset, channels, size).values()
        images = G(G.draw_z(7))
        assert images.shape == (7, channels, size, size)
        assert D(images).shape == (7,)
        assert G.f(torch.zeros(7, 2 * z_dim)).shape == (7, channels, size, size)
        assert G.g(images).shape == (7, z_dim)
    maps = kernels[0] * (size // 2 ** (len(kernels) - 1)) ** 2  # 80 x 7 x 7, 1024 x 4 x 4, ...
    pairs = list(itertools.pairwise(kernels))
    norms = 2 * sum(kernels[:-1])
    ups = sum(25 * a * b + b for a, b in pairs)
    downs = sum(25 * a * b + a for a, b in pairs)
    counts = {
        "W": z_dim * z_dim + z_dim,
        "f": 2 * z_dim * maps + maps + norms + ups,
        "g": downs + norms + maps * z_dim + z_dim + 2 * z_dim,
    }
    norms_d = norms - 2 * kernels[-2]  # DCGAN leaves D's first layer without
    parts = {"W": G.W, "f": G.f, "g": G.g, "D": D}
    counts["D"] = downs + norms_d + maps + 1
    assert {k: sum(p.numel() for p in net.parameters()) for k, net in parts.items()} == counts


def test_sizes_follow_the_images():
    authors, small = (1e-4, 4e-5), (2e-4, 8e-4)  # rates of G and D
    faces = ([128, 64, 32], 100, small)
    assert gran.table_5("telugu", 1, 32) == ([80, 40], 60, (2e-4, 4e-4))
    assert gran.table_5("mnist", 1, 28, width=20) == ([40, 20], 60, (2e-4, 4e-4))
    assert gran.table_5("svhn", 3, 32) == ([1024, 512, 216], 100, authors)
    assert gran.table_5("faces", 3, 32) == gran.table_5("holidays", 3, 32) == faces
    assert gran.table_5("celeba", 3, 64) == ([1024, 512, 216, 128], 100, (2e-4, 1e-4))
    assert gran.table_5("celeba", 3, 64, width=16) == ([128, 64, 32, 16], 100, (2e-4, 1e-4))
    G, D = (gran.build(argparse.Namespace(dataset="cifar10", channels=3, size=32, steps=2,
                                          noise="once", tie=False, width=8))[name] for name in "GD")
    assert D.down[0].out_channels == 8 and G.f.dense.out_features == 32 * 4 * 4
    with pytest.raises(data.InputError, match="--size"):
        gran.table_5("folder", 3, 28)


def test_one_step_is_dcgan_up_to_one_dense_layer():
    """T = 1: a DCGAN generator after tanh(W z + b); h_c = 0 drops half of f's dense layer."""
    G = paper("mnist", 1, 28, steps=1)["G"]
    dcgan = nn.Sequential(
        nn.Linear(60, 80 * 7 * 7), nn.Unflatten(1, (80, 7, 7)),
        nn.BatchNorm2d(80), nn.ReLU(), nn.ConvTranspose2d(80, 40, 5, 2, 2, 1),
        nn.BatchNorm2d(40), nn.ReLU(), nn.ConvTranspose2d(40, 1, 5, 2, 2, 1), nn.Sigmoid(),
    )
    maps_first = torch.arange(7 * 7 * 80).reshape(7, 7, 80).permute(2, 0, 1).flatten()
    dcgan[0].weight.data = G.f.dense.weight.data[maps_first, :60]
    dcgan[0].bias.data = G.f.dense.bias.data[maps_first]
    dcgan[4].load_state_dict(G.f.up[2].state_dict())
    dcgan[7].load_state_dict(G.f.up[5].state_dict())
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
    canvases = torch.stack([dC1, dC1 + dC2, dC1 + dC2 + dC3])
    torch.testing.assert_close(G(z, every_step=True), torch.sigmoid(canvases))


def test_h_c_tells_images_apart_whatever_its_bias():
    """Each unit of h_c is tanh of mean 0 and variance 1 over the batch: it never saturates."""
    g = small().g
    with torch.no_grad():
        g.dense.bias.fill_(50)
        before_tanh = torch.atanh(g(torch.randn(500, 1, 8, 8)).double())
    torch.testing.assert_close(before_tanh.mean(0), torch.zeros(5).double(), atol=1e-3, rtol=0)
    ones = torch.ones(5).double()
    torch.testing.assert_close(before_tanh.var(0, correction=0), ones, atol=1e-2, rtol=0)


def test_noise_once_or_per_step():
    once, fresh = small(noise="once").draw_z(1000), small(noise="per-step").draw_z(1000)
    assert once.shape == fresh.shape == (3, 1000, 5)
    assert torch.equal(once[0], once[1]) and torch.equal(once[0], once[2])
    correlation = (fresh[0] * fresh[1]).mean()
    assert abs(correlation) < 5 / math.sqrt(5000)  # independent: N(0, 1 / 5000)


def test_tied_kernels_make_g_the_transpose_of_f():
    """<up x, y> = <x, down y> for two layers, biases aside, if and only if kernels are tied."""
    G, free = small(tie=True), small(tie=False)
    count = [sum(p.numel() for p in net.parameters()) for net in (G, free)]
    assert count[1] - count[0] == 25 * (6 * 4 + 4 * 1)
    for net, same in ((G, True), (free, False)):
        up, down = net.f.up[2], net.g.down[3]  # 6 maps of 2 px, 4 maps of 4 px
        with torch.no_grad():
            up.bias.zero_()
            down.bias.zero_()
            x, y = torch.randn(2, 6, 2, 2), torch.randn(2, 4, 4, 4)
            inner_up, inner_down = (up(x) * y).sum(), (x * down(y)).sum()
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
    assert gran.d_loss(torch.tensor([-1e4]), torch.tensor([1e4])) == 2e4  # no overflow


def test_update_is_two_steps_by_hand():
    """D on labels 1 and 0, then G on label 1 through the D just updated; twice."""
    nets = [small(), gran.Discriminator([6, 4], 1, 8)]
    G, D = copy.deepcopy(nets)
    (opt_G, opt_D), optimisers = ([torch.optim.SGD(net.parameters(), 0.1) for net in pair]
                                  for pair in ((G, D), nets))
    bce = F.binary_cross_entropy_with_logits
    for _ in range(2):
        x, z = torch.rand(10, 1, 8, 8), torch.randn(3, 10, 5)
        found = gran.update(*nets, *optimisers, x, z, contextlib.nullcontext())

        fake = G(z)
        opt_D.zero_grad()
        real_logit, fake_logit = D(x), D(fake.detach())
        loss_D = bce(real_logit, torch.ones(10)) + bce(fake_logit, torch.zeros(10))
        loss_D.backward()
        opt_D.step()
        opt_G.zero_grad()
        loss_G = bce(D(fake), torch.ones(10))
        loss_G.backward()
        opt_G.step()
        shares = real_logit.sigmoid().mean(), fake_logit.sigmoid().mean()
        torch.testing.assert_close(found, torch.stack([loss_D, loss_G, *shares]))
    for net, by_hand in zip(nets, (G, D)):
        torch.testing.assert_close(dict(net.named_parameters()), dict(by_hand.named_parameters()),
                                   rtol=1e-4, atol=1e-5)
        assert all(p.requires_grad and p.grad is not None for p in net.parameters())
    assert nets[0].g.dense.weight.grad.abs().sum() > 0  # through the recurrence


def test_the_average_is_what_samples_come_from():
    nets = paper("mnist", 1, 28, ema=0.99)
    assert nets.keys() == {"G", "D", "ema"} and paper("mnist", 1, 28, ema=0).keys() == {"G", "D"}
    with torch.no_grad():
        nets["ema"].f.up[-1].weight.zero_()
        nets["ema"].f.up[-1].bias.zero_()
    assert (gran.sample(nets, 4, batch_size=4) == 0.5).all()  # the sigmoid of 0


def test_more_steps_continue_from_the_same_canvas():
    """Table 4. A run of one step has never trained its g and is refused."""
    frames, longer = (gran.canvases({"G": small(steps=3)}, 6, steps, torch.Generator(), 10)
                      for steps in (None, 5))
    assert frames.shape == (3, 6, 1, 8, 8) and longer.shape == (5, 6, 1, 8, 8)
    assert torch.equal(frames, longer[:3])
    with pytest.raises(data.InputError, match="never trained g"):
        gran.sample({"G": small(steps=1)}, 4, steps=2)


def test_a_batch_has_its_own_statistics():
    """No running averages: eval and train draw the same, and D scores a batch by that batch."""
    G, D = small(), gran.Discriminator([6, 4], 1, 8)
    z = G.draw_z(10)
    assert torch.equal(G.train()(z), G.eval()(z))
    assert not any("running" in name for net in (G, D) for name in net.state_dict())
