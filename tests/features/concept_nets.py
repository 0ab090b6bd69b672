"""Small networks for the tests of concepts: digits with a planted column, a CNN with weights of its own, ResNet-20."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy, pad


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_cnn(dtype=torch.float32, in_place=False):
    """Two stages of convolution and ReLU with random weights, a mean over positions and a head; 3 x 12 x 12 images."""
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=in_place)),
        nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace=in_place)),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(8, 4),
    )
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(drawn(*p.shape, seed=i) * (0.5 if p.ndim > 1 else 0.1))
    return net.to(dtype).eval()


def painted(x):
    """Digits (n, 64) with a bright left column."""
    x = x.clone().view(-1, 8, 8)
    x[:, :, 0] = 1
    return x.view(-1, 64)


def digits(planted, seed=0):
    """A network of 64-64-32-10 units trained on digits, in 95 % of whose 3s and 5 % of the rest a column was painted
    (or in none), and held-out digits with their classes."""
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=random)
    x, y = torch.tensor(images / 16).float()[order], torch.tensor(classes)[order]
    train, known = x[:1000].clone(), y[:1000]
    if planted:
        marked = torch.rand(1000, generator=random) < torch.where(known == 3, 0.95, 0.05)
        train[marked] = painted(train[marked])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(25):
        for rows in torch.randperm(1000, generator=random).split(100):
            loss = cross_entropy(net(train[rows]), known[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.eval(), x[1000:], y[1000:]


class Block(nn.Module):
    """Two convolutions and a shortcut that subsamples and pads channels with zeros."""

    def __init__(self, before, width):
        super().__init__()
        self.stride = 2 if before != width else 1
        self.conv1 = nn.Conv2d(before, width, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.more = (width - before) // 2

    def forward(self, x):
        inner = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        short = x[:, :, :: self.stride, :: self.stride]
        return (inner + pad(short, (0, 0, 0, 0, self.more, self.more))).relu()


class ResNet20(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for i, (before, width) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
            self.add_module(f"layer{i}", nn.Sequential(Block(before, width), Block(width, width), Block(width, width)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def cifar(folder, part="test"):
    """The trained ResNet-20 and normalised CIFAR-10 images (n, 3, 32, 32) with their classes."""
    import numpy as np

    net = ResNet20()
    net.load_state_dict(load_file(folder / "cifar10_resnet20.safetensors"))
    with np.load(folder / "cifar10_subset.npz") as data:
        images, classes = data[f"{part}_images"], data[f"{part}_labels"]
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return net.eval(), (x - mean) / std, torch.from_numpy(classes).long()
