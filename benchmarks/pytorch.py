"""This project's purifier, attacks and training step against a straightforward PyTorch version.

    python -m benchmarks.pytorch            (needs requirements-torch.txt)

Same weights, images and algorithm on both sides (ADP with a finite difference, T 10, a U-Net of
CIFAR size, ResNet-20), two threads; PyTorch in the better of its default and channels-last memory
formats. Both sides alternate in one run; best times, PyTorch's over ours: over 1 ours is faster.
GFLOP/s: the operations that PyTorch counts, so what is computed twice counts once, over the time;
in per cent of the rate of a large matrix product, the faster of the two libraries'.
Peak memory of the exact gradient is that of a process of its own for each side.
"""

import argparse
import copy
import ctypes
import functools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from attacks.gradients import attacked_purifier, expectation
from attacks.losses import cross_entropy
from benchmarks.timing import best_times
from purify import models
from purify.defense import Defense
from purify.models.importing import import_weights
from purify.models.networks import Classifier, Score
from purify.purifiers.adp import ADP
from purify.runtime.compilation import compiler_options
from purify.training.loop import init_state, make_train_step
from purify.training.losses import dsm, noise_levels
from purify.training.options import TrainOptions
from tests.torch_twins import CifarResNet

WIDTHS, BLOCKS, SHAPE = (32, 64, 64), 2, (32, 32, 3)
SIGMA, LAM, TAU, DELTA, STEPS, RUNS, EOT = 0.25, 0.05, -1.0, 1e-3, 10, 10, 15
TRAIN_BATCH, ACCUMULATE, ROUNDS = 64, 8, 4
LAYOUTS = {"default": torch.contiguous_format, "channels last": torch.channels_last}


class TorchUNet(nn.Module):
    """purify.models.unet.UNet with the same weights."""

    def __init__(self, params):
        super().__init__()
        self.leaves = nn.ParameterDict()
        for path, leaf in jax.tree.leaves_with_path(params):
            array = np.array(leaf)
            name = "-".join(key.key for key in path)
            self.leaves[name] = torch.tensor(
                array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
            )

    def conv(self, name, x):
        weight = self.leaves[f"{name}-kernel"]
        return F.conv2d(x, weight, self.leaves[f"{name}-bias"], padding=weight.shape[-1] // 2)

    def norm(self, name, x):
        return F.group_norm(x, 8, self.leaves[f"{name}-scale"], self.leaves[f"{name}-bias"])

    def block(self, index, x):
        name = f"ResidualBlock_{index}"
        y = self.conv(f"{name}-Conv_0", F.silu(self.norm(f"{name}-GroupNorm_0", x)))
        y = self.conv(f"{name}-Conv_1", F.silu(self.norm(f"{name}-GroupNorm_1", y)))
        widens = f"{name}-Conv_2-kernel" in self.leaves
        return y + (self.conv(f"{name}-Conv_2", x) if widens else x)

    def forward(self, x):
        convs, blocks = iter(range(100)), iter(range(100))
        y, skips = self.conv(f"Conv_{next(convs)}", 2 * x - 1), []
        for level in range(len(WIDTHS)):
            y = F.avg_pool2d(y, 2) if level else y
            for _ in range(BLOCKS):
                y = self.block(next(blocks), y)
            skips.append(y)
        y = self.block(next(blocks), y)
        for level in reversed(range(len(WIDTHS) - 1)):
            y = F.interpolate(self.conv(f"Conv_{next(convs)}", y), scale_factor=2, mode="nearest")
            y = self.conv(f"Conv_{next(convs)}", torch.cat([y, skips[level]], 1))
            for _ in range(BLOCKS):
                y = self.block(next(blocks), y)
        return self.conv(f"Conv_{next(convs)}", F.silu(self.norm("GroupNorm_0", y)))


def torch_adp(h, x):
    """From the noised batch on."""
    for _ in range(STEPS):
        grad = h(x)
        change = grad - h(x + DELTA * grad)
        curvature = (grad * change).sum((1, 2, 3)) / (grad**2).sum((1, 2, 3)) / DELTA
        alpha = (LAM / curvature.clamp(min=LAM / 0.1)).clamp(min=1e-5)
        x = (x + alpha[:, None, None, None] * grad).clamp(0, 1)
    return x


class Theirs:
    """The PyTorch side in one memory format: networks, images and what is timed of them."""

    def __init__(self, params, classifier, mean_std, images, layout: str):
        self.format = LAYOUTS[layout]
        self.params, self.classifier = params, self.to_format(classifier)
        self.twin = self.to_format(TorchUNet(params))
        for module in (self.twin, self.classifier):
            module.requires_grad_(False)  # attacks differentiate with respect to the image only
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) for v in mean_std)
        self.images = self.tensor(images)
        self.labels = torch.arange(len(images)) % 10

    def to_format(self, module):
        return copy.deepcopy(module).to(memory_format=self.format)

    def tensor(self, images):
        """[n, H, W, C] -> [n, C, H, W] in this format."""
        tensor = torch.tensor(images.transpose(0, 3, 1, 2))
        return tensor.contiguous(memory_format=self.format)

    def classify(self, x):
        return self.classifier((x - self.mean) / self.std)

    def noised(self, x, draws: int):
        x = x.repeat_interleave(draws, 0)
        return (x + SIGMA * torch.randn_like(x)).clamp(0, 1)

    def predict(self):
        with torch.no_grad():
            purified = torch_adp(self.twin, self.noised(self.images, RUNS))
            return self.classify(purified).view(-1, RUNS, 10).mean(1)

    def attack_step(self, gradient: str, eot: int):
        x, labels = self.images.clone().requires_grad_(), self.labels.repeat_interleave(eot)
        if gradient == "bpda":
            with torch.no_grad():
                purified = torch_adp(self.twin, self.noised(x, eot))
            purified.requires_grad_()
            loss = F.cross_entropy(self.classify(purified), labels, reduction="sum")
            (grad,) = torch.autograd.grad(loss, purified)
            grad = grad.view(len(x), eot, *x.shape[1:]).sum(1)
        else:
            purified = torch_adp(self.twin, self.noised(x, eot))
            loss = F.cross_entropy(self.classify(purified), labels, reduction="sum")
            (grad,) = torch.autograd.grad(loss, x)
        return x.detach() + 0.01 * grad.sign()

    def trainer(self, images, sigmas):
        """A function that takes one step: Adam, clipping, an average of the weights."""
        network = self.to_format(TorchUNet(self.params))
        optimizer = torch.optim.Adam(network.parameters(), 1e-3)
        averages = [parameter.detach().clone() for parameter in network.parameters()]
        levels, batch = torch.tensor(sigmas), self.tensor(images) / 255

        def step():
            sigma = levels[torch.randint(len(levels), (TRAIN_BATCH,))].view(-1, 1, 1, 1)
            z = torch.randn_like(batch)
            loss = 0.5 * ((network(batch + sigma * z) + z) ** 2).sum((1, 2, 3)).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                for average, parameter in zip(averages, network.parameters(), strict=True):
                    average.lerp_(parameter, 0.001)

        return step


class Sides:
    """Both versions of everything, on `batch` images.

    What is timed comes as functions without arguments: ours, and PyTorch's by memory format.
    """

    def __init__(self, batch: int):
        rng = np.random.default_rng(0)
        network = models.build("unet", widths=WIDTHS, blocks=BLOCKS)
        shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *SHAPE)))

        def draw(leaf):
            scale = max(np.prod(leaf.shape[:-1]), 1) ** -0.5
            offset = 1.0 if len(leaf.shape) == 1 else 0.0
            return jnp.asarray(scale * rng.standard_normal(leaf.shape) + offset, jnp.float32)

        variables = jax.tree.map(draw, shapes)
        torch.manual_seed(0)
        classifier = CifarResNet(20, 10).eval()
        weights = {name: w.numpy() for name, w in classifier.state_dict().items()}
        settings, classifier_variables = import_weights("resnet20", weights)
        self.score = Score(variables, network)
        options = dict(lam=LAM, tau=TAU, delta=DELTA, num_steps=STEPS, loop="scan")
        purifier = ADP(self.score, SIGMA, curvature="finite_difference", **options)
        our_classifier = Classifier(classifier_variables, models.build(**settings))
        self.defense = Defense(purifier, our_classifier, num_runs=RUNS)
        self.images = rng.random((batch, *SHAPE)).astype(np.float32)
        self.labels = np.arange(batch) % 10
        self.keys = jax.random.split(jax.random.key(1), batch)
        mean_std = settings["mean"], settings["std"]
        self.theirs = {
            layout: Theirs(variables["params"], classifier, mean_std, self.images, layout)
            for layout in LAYOUTS
        }

    def difference_of_h(self) -> float:
        """The largest, between the two score networks."""
        ours, side = jax.jit(jax.vmap(self.score))(self.images), self.theirs["default"]
        theirs = side.twin(side.images).numpy().transpose(0, 2, 3, 1)
        return float(np.abs(np.asarray(ours) - theirs).max())

    def prediction(self):
        def ours(defense, keys, images):
            return jax.vmap(defense)(keys, images)

        theirs = {layout: side.predict for layout, side in self.theirs.items()}
        return compiled(ours, self.defense, self.keys, self.images), theirs

    def attack_step(self, gradient: str, eot: int):
        """Gradient of the mean cross-entropy over `eot` runs, and a sign step."""
        purifier = attacked_purifier(gradient, self.defense.purifier)

        def ours(defense, keys, images, labels):
            def loss(key, x, y):
                return expectation(lambda k, x: cross_entropy(defense.run(k, x), y), eot)(key, x)

            return images + 0.01 * jnp.sign(jax.vmap(jax.grad(loss, 1))(keys, images, labels))

        defense = self.defense.replace(purifier=purifier)
        theirs = {
            layout: functools.partial(side.attack_step, gradient, eot)
            for layout, side in self.theirs.items()
        }
        return compiled(ours, defense, self.keys, self.images, self.labels), theirs

    def training_step(self):
        sigmas = noise_levels(0.6, 0.01, 40)
        options = TrainOptions(100, TRAIN_BATCH, 1e-3, accumulate=ACCUMULATE)

        def loss_fn(variables, key, image, label):
            score = Score(variables, self.score.network)
            return *dsm(score, key, image, sigmas=jnp.asarray(sigmas)), {}

        train_step = make_train_step(
            loss_fn,
            options.optimizer(),
            ema_decay=0.999,
            augment=lambda key, x: x,
            accumulate=options.accumulate,
        )
        state = [init_state(jax.tree.map(jnp.copy, self.score.variables), options.optimizer())]
        images = np.random.default_rng(0).integers(0, 256, (TRAIN_BATCH, *SHAPE), np.uint8)
        index, key = np.arange(TRAIN_BATCH), jax.random.key(0)

        def ours():
            state[0], _ = train_step(state[0], key, index, images, index)
            return state[0]

        return ours, {name: side.trainer(images, sigmas) for name, side in self.theirs.items()}


def compiled(function, *arguments):
    program = jax.jit(function).lower(*arguments).compile(compiler_options())
    return lambda: program(*arguments)


def peak_rate() -> float:
    """GFLOP/s of a float32 matrix product, the better library's."""
    side = 2048
    torch_matrix = torch.ones(side, side)
    jax_matrix = jnp.ones((side, side))
    products = {
        "torch": functools.partial(torch.matmul, torch_matrix, torch_matrix),
        "jax": functools.partial(jax.jit(jnp.matmul), jax_matrix, jax_matrix),
    }
    return 2 * side**3 / min(best_times(products, 10).values()) / 1e9


def compare(name: str, pair, peak: float) -> None:
    ours, theirs = pair
    with FlopCounterMode(display=False) as counter:
        theirs["default"]()
    work = counter.get_total_flops() / 1e9
    best = best_times({"ours": ours, **theirs}, ROUNDS)
    other = min(theirs, key=best.__getitem__)
    print(
        f"{name}: ours {1e3 * best['ours']:.0f} ms, PyTorch {1e3 * best[other]:.0f} ms ({other}): "
        f"{best[other] / best['ours']:.2f}\n    "
        + ", ".join(
            f"{side} {work / best[key]:.0f} GFLOP/s ({100 * work / best[key] / peak:.0f} %)"
            for side, key in (("ours", "ours"), ("PyTorch", other))
        ),
        flush=True,
    )


def added_memory(function) -> float:
    """MiB by which a call raises this process's resident memory at its highest (Linux)."""

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))

    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what compiling left behind is not ours to reuse
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    before = status("VmRSS")
    jax.block_until_ready(function())
    return (status("VmHWM") - before) / 1024


def peak_memory(side: str, batch: int, eot: int) -> float:
    """MiB that the exact gradient adds to a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.pytorch",
        f"--peak={side}",
        f"--batch={batch}",
        f"--eot={eot}",
    ]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--eot", type=int, default=EOT)
    parser.add_argument("--peak", choices=("ours", "theirs"), help="print peak memory, for itself")
    args = parser.parse_args()
    torch.set_num_threads(2)
    sides = Sides(args.batch)
    if args.peak:
        ours, theirs = sides.attack_step("exact", args.eot)
        print(added_memory(ours if args.peak == "ours" else theirs["default"]))
        return
    difference = sides.difference_of_h()
    print(f"{args.batch} images, T {STEPS}; largest difference of h: {difference:.1e}")
    peak = peak_rate()
    print(f"matrix product: {peak:.0f} GFLOP/s")
    compare(f"prediction, S {RUNS}", sides.prediction(), peak)
    compare(f"BPDA step, EOT {args.eot}", sides.attack_step("bpda", args.eot), peak)
    compare(f"exact step, EOT {args.eot}", sides.attack_step("exact", args.eot), peak)
    compare(f"training step, batch {TRAIN_BATCH}", sides.training_step(), peak)
    peaks = {side: peak_memory(side, args.batch, args.eot) for side in ("ours", "theirs")}
    print(
        f"peak memory of the exact step: ours {peaks['ours']:.0f} MiB, PyTorch "
        f"{peaks['theirs']:.0f} MiB: {peaks['ours'] / peaks['theirs']:.2f}"
    )


if __name__ == "__main__":
    main()
