"""A small residual network without batch statistics, for classifiers."""

import flax.linen as nn

from purify.models.layers import Conv, GroupNorm, ResidualBlock, mean_pool, normalise
from purify.types import Array


class ResNet(nn.Module):
    """[N, H, W, C] images in [0, 1] -> logits [N, num_classes].

    mean and std normalise the input (one value for all channels or one per channel); widths are the
    channels of the stages, each half the resolution of the one before.
    """

    num_classes: int
    widths: tuple[int, ...] = (32, 64)
    blocks: int = 2
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        y = Conv(self.widths[0])(normalise(x, self.mean, self.std))
        for stage, width in enumerate(self.widths):
            if stage:
                y = mean_pool(y)
            for _ in range(self.blocks):
                y = ResidualBlock(width)(y)
        y = nn.silu(GroupNorm()(y)).mean((1, 2))
        return nn.Dense(self.num_classes)(y)
