"""APGD on an undefended ResNet-20 against PyTorch's.

    python -m benchmarks.apgd [--weights=FILE]          (needs requirements-peers.txt)

20 iterations of APGD on the cross-entropy, Linf 8/255, from random starts, on 128 random images of
CIFAR-10's shape; the same weights on both sides, FILE's (.npz or .safetensors under PyTorch's
names) or random ones. PyTorch's APGD is that of AutoAttack's authors, in the default and in the
channels-last memory format, on two threads. Both attack all images at once, and in parts that a
CPU's caches hold; the better counts. All alternate in one run; best times, PyTorch's over ours:
over 1 ours is faster.
"""

import argparse
import copy

import jax
import numpy as np
import torch
from pyautoattack.autopgd_base import APGDAttack

import attacks
from benchmarks.pytorch import LAYOUTS
from benchmarks.timing import best_times
from purify import models
from purify.models.importing import import_weights, read_weights
from purify.models.networks import Classifier
from purify.runtime.compilation import compiler_options
from tests.torch_twins import CifarResNet

BATCH, SHAPE, EPS, STEPS, ROUNDS = 128, (32, 32, 3), 8 / 255, 20, 5
AT_ONCE = (128, 16)  # images: all, or as many as a CPU's caches hold


class Sides:
    """Both versions on the same images, as functions without arguments that give attacked images:
    [n, H, W, C], ours and PyTorch's by memory format, so many at once."""

    def __init__(self, weights: dict[str, np.ndarray] | None = None):
        torch.manual_seed(0)
        twin = CifarResNet(20, 10)
        if weights is None:
            weights = {name: w.numpy() for name, w in twin.state_dict().items()}
        twin.load_state_dict({k: torch.tensor(w) for k, w in weights.items()}, strict=False)
        self.twin = twin.eval().requires_grad_(False)
        settings, variables = import_weights("resnet20", weights)
        self.classifier = Classifier(variables, models.build(**settings))
        self.mean, self.std = (torch.tensor(settings[k]).view(3, 1, 1) for k in ("mean", "std"))
        images = np.random.default_rng(0).random((BATCH, *SHAPE)).astype(np.float32)
        # What the network says: every image can be fooled.
        self.labels = np.asarray(jax.vmap(self.classifier)(images)).argmax(1)
        self.images = images

    def parts(self, at_once: int) -> list[slice]:
        return [slice(start, start + at_once) for start in range(0, BATCH, at_once)]

    def ours(self, at_once: int):
        attack = attacks.build("apgd", eps=EPS, num_steps=STEPS, selection_draws=1, remeasure=False)

        def batched(classifier, keys, images, labels):
            logits_fn = jax.tree_util.Partial(lambda c, key, image: c(image), classifier)
            return jax.vmap(attack, (0, None, 0, 0))(keys, logits_fn, images, labels).image

        rows = jax.random.split(jax.random.key(0), BATCH), self.images, self.labels
        parts = [[array[part] for array in rows] for part in self.parts(at_once)]
        arguments = self.classifier, *parts[0]
        program = jax.jit(batched).lower(*arguments).compile(compiler_options())
        return lambda: np.concatenate([program(self.classifier, *part) for part in parts])

    def theirs(self, layout: str, at_once: int):
        memory_format = LAYOUTS[layout]
        twin = copy.deepcopy(self.twin).to(memory_format=memory_format)

        def model(x):
            return twin(((x - self.mean) / self.std).contiguous(memory_format=memory_format))

        images = torch.tensor(self.images.transpose(0, 3, 1, 2))
        images = images.contiguous(memory_format=memory_format)
        attack = APGDAttack(model, n_iter=STEPS, eps=EPS, loss="ce", device="cpu")
        attack.init_hyperparam(images)
        labels = torch.tensor(self.labels)

        def run():
            # Of all images; `perturb` would leave out those that are wrong to begin with.
            found = [
                attack.attack_single_run(images[part], labels[part])[0]
                for part in self.parts(at_once)
            ]
            return torch.cat(found).numpy().transpose(0, 2, 3, 1)

        return run

    def fooled(self, images: np.ndarray) -> float:
        """The share of these images [n, H, W, C] whose answer is wrong."""
        answers = np.asarray(jax.vmap(self.classifier)(images)).argmax(1)
        return float(np.mean(answers != self.labels))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="of a ResNet-20; random ones without it")
    args = parser.parse_args()
    torch.set_num_threads(2)
    sides = Sides(read_weights(args.weights) if args.weights else None)
    functions = {}
    for n in AT_ONCE:
        functions["ours", n] = sides.ours(n)
        functions |= {(layout, n): sides.theirs(layout, n) for layout in LAYOUTS}
    times = best_times(functions, ROUNDS)
    print(f"{BATCH} images, {STEPS} iterations")
    for (side, n), seconds in times.items():
        print(
            f"{side:14} {n:3} at once: {seconds:.2f} s, fooled {sides.fooled(functions[side, n]())}"
        )
    best = {side: min(times[side, n] for n in AT_ONCE) for side in ("ours", *LAYOUTS)}
    for layout in LAYOUTS:
        print(f"PyTorch's, {layout}, over ours: {best[layout] / best['ours']:.2f}")


if __name__ == "__main__":
    main()
