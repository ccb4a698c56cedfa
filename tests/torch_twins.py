"""The published networks once more, in PyTorch and batch by batch: what ours are compared with.

Written from their descriptions (Song and Ermon 2020; Zagoruyko and Komodakis 2016; He et al. 2016)
with the published names of parameters.
"""

import torch
from torch import nn
from torch.nn import functional as F


def conv(i, o, size=3, stride=1, dilation=1, bias=True):
    return nn.Conv2d(i, o, size, stride, dilation * (size // 2), dilation, bias=bias)


class InstanceNormPlus(nn.Module):
    def __init__(self, features):
        super().__init__()
        for name in ("alpha", "gamma", "beta"):
            self.register_parameter(name, nn.Parameter(torch.zeros(features)))

    def forward(self, x):
        means = x.mean((2, 3), keepdim=True)
        standard = (means - means.mean(1, keepdim=True)) / (
            means.var(1, keepdim=True) + 1e-5
        ).sqrt()
        y = F.instance_norm(x) + self.alpha[:, None, None] * standard
        return self.gamma[:, None, None] * y + self.beta[:, None, None]


class ConvMeanPool(nn.Module):
    def __init__(self, i, o, size):
        super().__init__()
        self.conv = conv(i, o, size)

    def forward(self, x):
        return F.avg_pool2d(self.conv(x), 2)


class DilatedBlock(nn.Module):
    def __init__(self, i, o, dilation=None, down=False):
        super().__init__()
        if down and dilation is None:
            self.conv1, self.conv2 = conv(i, i), ConvMeanPool(i, o, 3)
            self.shortcut = ConvMeanPool(i, o, 1)
        else:
            inner = i if down else o
            self.conv1 = conv(i, inner, dilation=dilation or 1)
            self.conv2 = conv(inner, o, dilation=dilation or 1)
            if down:
                self.shortcut = conv(i, o, dilation=dilation)
        self.normalize1, self.normalize2 = InstanceNormPlus(i), InstanceNormPlus(i if down else o)

    def forward(self, x):
        y = self.conv1(F.elu(self.normalize1(x)))
        y = self.conv2(F.elu(self.normalize2(y)))
        return y + (self.shortcut(x) if hasattr(self, "shortcut") else x)


class ConvUnits(nn.Module):
    def __init__(self, features, blocks):
        super().__init__()
        self.blocks = blocks
        for block in range(blocks):
            for stage in range(2):
                self.add_module(
                    f"{block + 1}_{stage + 1}_conv", conv(features, features, bias=False)
                )

    def forward(self, x):
        for block in range(self.blocks):
            y = x
            for stage in range(2):
                y = getattr(self, f"{block + 1}_{stage + 1}_conv")(F.elu(y))
            x = x + y
        return x


class Fusion(nn.Module):
    def __init__(self, inputs, features):
        super().__init__()
        self.convs = nn.ModuleList(conv(i, features) for i in inputs)

    def forward(self, xs, shape):
        return sum(
            F.interpolate(c(x), size=shape, mode="bilinear", align_corners=True)
            for c, x in zip(self.convs, xs, strict=True)
        )


class ChainedPool(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.convs = nn.ModuleList(conv(features, features, bias=False) for _ in range(2))

    def forward(self, x):
        x = path = F.elu(x)
        for c in self.convs:
            path = c(F.max_pool2d(path, 5, 1, 2))
            x = x + path
        return x


class RefineBlock(nn.Module):
    def __init__(self, inputs, features, end=False):
        super().__init__()
        self.adapt_convs = nn.ModuleList(ConvUnits(i, 2) for i in inputs)
        self.output_convs = ConvUnits(features, 3 if end else 1)
        if len(inputs) > 1:
            self.msf = Fusion(inputs, features)
        self.crp = ChainedPool(features)

    def forward(self, *xs):
        ys = [adapt(x) for adapt, x in zip(self.adapt_convs, xs, strict=True)]
        y = self.msf(ys, ys[0].shape[2:]) if len(ys) > 1 else ys[0]
        return self.output_convs(self.crp(y))


class NCSNv2(nn.Module):
    """h, before the published network's division by sigma."""

    def __init__(self, ngf, channels=3):
        super().__init__()
        n, w = ngf, 2 * ngf
        self.begin_conv, self.end_conv = conv(channels, n), conv(n, channels)
        self.normalizer = InstanceNormPlus(n)
        self.res1 = nn.Sequential(DilatedBlock(n, n), DilatedBlock(n, n))
        self.res2 = nn.Sequential(DilatedBlock(n, w, down=True), DilatedBlock(w, w))
        self.res3 = nn.Sequential(DilatedBlock(w, w, 2, down=True), DilatedBlock(w, w, 2))
        self.res4 = nn.Sequential(DilatedBlock(w, w, 4, down=True), DilatedBlock(w, w, 4))
        self.refine1, self.refine2 = RefineBlock([w], w), RefineBlock([w, w], w)
        self.refine3, self.refine4 = RefineBlock([w, w], n), RefineBlock([n, n], n, end=True)
        self.register_buffer("sigmas", torch.linspace(1.0, 0.01, 10))

    def forward(self, x):
        first = self.res1(self.begin_conv(2 * x - 1))
        second = self.res2(first)
        third = self.res3(second)
        y = self.refine2(third, self.refine1(self.res4(third)))
        y = self.refine4(first, self.refine3(second, y))
        return self.end_conv(F.elu(self.normalizer(y)))


class MeliketoyBlock(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(i), conv(i, o)
        self.bn2, self.conv2 = nn.BatchNorm2d(o), conv(o, o, stride=stride)
        straight = stride == 1 and i == o
        self.shortcut = nn.Sequential(*[] if straight else [conv(i, o, 1, stride)])

    def forward(self, x):
        y = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return y + self.shortcut(x)


class MeliketoyWideResNet(nn.Module):
    def __init__(self, depth, widen, classes):
        super().__init__()
        self.conv1 = conv(3, 16)
        i = 16
        for stage in range(3):
            o, blocks = widen * 16 * 2**stage, []
            for block in range((depth - 4) // 6):
                blocks.append(MeliketoyBlock(i, o, 2 if stage and not block else 1))
                i = o
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.bn1, self.linear = nn.BatchNorm2d(i), nn.Linear(i, classes)

    def forward(self, x):
        y = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.linear(F.relu(self.bn1(y)).mean((2, 3)))


class StandardBlock(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(i), conv(i, o, stride=stride, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(o), conv(o, o, bias=False)
        self.convShortcut = None if i == o else conv(i, o, 1, stride, bias=False)

    def forward(self, x):
        active = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return y + (x if self.convShortcut is None else self.convShortcut(active))


class StandardGroup(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.layer = nn.Sequential(*blocks)

    def forward(self, x):
        return self.layer(x)


class StandardWideResNet(nn.Module):
    def __init__(self, depth, widen, classes):
        super().__init__()
        self.conv1 = conv(3, 16, bias=False)
        i = 16
        for stage in range(3):
            o, blocks = widen * 16 * 2**stage, []
            for block in range((depth - 4) // 6):
                blocks.append(StandardBlock(i, o, 2 if stage and not block else 1))
                i = o
            self.add_module(f"block{stage + 1}", StandardGroup(blocks))
        self.bn1, self.fc = nn.BatchNorm2d(i), nn.Linear(i, classes)

    def forward(self, x):
        y = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(y)).mean((2, 3)))


class BasicBlock(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(i, o, stride=stride, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = conv(o, o, bias=False), nn.BatchNorm2d(o)
        self.widens = i != o

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.widens:
            quarter = y.shape[1] // 4
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    def __init__(self, depth, classes):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 16, bias=False), nn.BatchNorm2d(16)
        i = 16
        for stage in range(3):
            o, blocks = 16 * 2**stage, []
            for block in range((depth - 2) // 6):
                blocks.append(BasicBlock(i, o, 2 if stage and not block else 1))
                i = o
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(i, classes)

    def forward(self, x):
        y = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(y.mean((2, 3)))


def published_adp(h, noised, *, lam, tau, delta, num_steps, alpha_min=1e-5, alpha_max=0.1):
    """The published purification loop from the noised batch on: the image and the step sizes after
    every step that was taken, by anyone of the batch."""
    x, images, sizes = noised * 255 / 256 + 1 / 512, [], []
    moving = torch.ones(len(x), dtype=torch.bool)
    with torch.no_grad():
        for _ in range(num_steps):
            grad = h(x)
            along = (grad * h(x + delta * grad)).sum((1, 2, 3)) / (grad**2).sum((1, 2, 3))
            alpha = torch.clamp(lam * delta / (1 - along), alpha_min, alpha_max)
            moving &= alpha > tau
            if not moving.any():
                break
            alpha = alpha * moving
            x = torch.clamp((x + alpha[:, None, None, None] * grad - 1 / 512) * 256 / 255, 0, 1)
            images.append(x)
            sizes.append(alpha)
    return images, sizes
