"""APGD on an undefended ResNet-20 against PyTorch's.

    python -m benchmarks.apgd [--weights=FILE]          (needs requirements-peers.txt)

20 iterations of APGD on the cross-entropy, Linf 8/255, from random starts, on 128 random images of
CIFAR-10's shape; the same weights on both sides, FILE's (.npz or .safetensors under PyTorch's
names) or random ones. PyTorch's APGD is that of AutoAttack's authors, in the default and in the
channels-last memory format, on two threads. All alternate in one run; best times, PyTorch's over
ours: over 1 ours is faster.
"""

import argparse
import copy
import functools

import jax
import numpy as np
import torch
from pyautoattack.autopgd_base import APGDAttack

import attacks
from benchmarks.pytorch import LAYOUTS, compiled
from benchmarks.timing import best_times
from purify import models
from purify.models.importing import import_weights, read_weights
from purify.networks import Classifier
from tests.torch_twins import CifarResNet

BATCH, SHAPE, EPS, STEPS, ROUNDS = 128, (32, 32, 3), 8 / 255, 20, 5


class Sides:
    """Both versions on the same images, as functions without arguments that give attacked images:
    ours [n, H, W, C], and PyTorch's by memory format [n, C, H, W]."""

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

    def ours(self):
        attack = attacks.build("apgd", eps=EPS, num_steps=STEPS, selection_draws=1, remeasure=False)

        def batched(classifier, keys, images, labels):
            logits_fn = jax.tree_util.Partial(lambda c, key, image: c(image), classifier)
            return jax.vmap(attack, (0, None, 0, 0))(keys, logits_fn, images, labels).image

        keys = jax.random.split(jax.random.key(0), BATCH)
        return compiled(batched, self.classifier, keys, self.images, self.labels)

    def theirs(self, layout: str):
        memory_format = LAYOUTS[layout]
        twin = copy.deepcopy(self.twin).to(memory_format=memory_format)

        def model(x):
            return twin(((x - self.mean) / self.std).contiguous(memory_format=memory_format))

        images = torch.tensor(self.images.transpose(0, 3, 1, 2))
        images = images.contiguous(memory_format=memory_format)
        attack = APGDAttack(model, n_iter=STEPS, eps=EPS, loss="ce", device="cpu")
        attack.init_hyperparam(images)
        # One run on all images; `perturb` would leave out those that are wrong to begin with.
        run = functools.partial(attack.attack_single_run, images, torch.tensor(self.labels))
        return lambda: run()[0]

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
    functions = {"ours": sides.ours()} | {layout: sides.theirs(layout) for layout in LAYOUTS}
    fooled = {
        name: sides.fooled(np.asarray(f()) if name == "ours" else f().numpy().transpose(0, 2, 3, 1))
        for name, f in functions.items()
    }
    print(f"{BATCH} images, {STEPS} iterations; fooled: {fooled}")
    best = best_times(functions, ROUNDS)
    print(f"ours: {best['ours']:.2f} s")
    for layout in LAYOUTS:
        print(f"PyTorch, {layout}: {best[layout]:.2f} s, ratio {best[layout] / best['ours']:.2f}")


if __name__ == "__main__":
    main()
