"""Seeds and dataset indices: each draws what no other one draws, or is refused."""

import jax
import numpy as np
import pytest

from purify.data.datasets import batch_indices
from purify.evals.core.stats import bootstrap_mean
from purify.evals.detect.roc import auroc
from purify.random import check_seed, image_keys, stream_key

NO_SEEDS = [-1, 2**32, 2**64, True, np.True_, 1.5, np.float32(1), "1", None]


@pytest.mark.parametrize("seed", NO_SEEDS, ids=repr)
def test_a_seed_that_is_none_is_refused_wherever_something_is_drawn(seed):
    varied, rows = [0.0, 0.5, 1.0], np.arange(4.0)
    draws = [
        lambda: stream_key(seed, "train"),
        lambda: image_keys(seed, np.arange(2)),
        lambda: batch_indices(seed, 0, 2, 4),
        lambda: bootstrap_mean(varied, seed=seed),
        lambda: auroc(rows, rows + 0.5, np.arange(4), seed=seed),
    ]
    for draw in draws:
        with pytest.raises(ValueError, match=r"seed=.* must be an integer from 0 to 2\*\*32 - 1"):
            draw()


def test_seeds_from_the_first_to_the_last_draw_differently():
    seeds = [0, 1, 2**31 - 1, 2**31, 2**32 - 1]
    drawn = {tuple(jax.random.key_data(stream_key(seed, "defense")).tolist()) for seed in seeds}
    assert len(drawn) == len(seeds)
    assert check_seed(np.int64(3)) == check_seed(np.uint8(3)) == 3
    same = stream_key(np.uint32(2**32 - 1), "defense"), stream_key(2**32 - 1, "defense")
    assert np.array_equal(*map(jax.random.key_data, same))


@pytest.mark.parametrize(
    "indices",
    [[-1, 0], [2**32], [0.0, 1.0], [True, False], [2**64], 3, np.zeros((2, 2), int)],
    ids=repr,
)
def test_an_index_that_would_pass_for_another_one_is_refused(indices):
    with pytest.raises(ValueError, match="indices must be n integers from 0 to 2"):
        image_keys(0, indices)


def test_an_index_has_the_key_that_is_folded_from_it():
    indices = [0, 7, 2**31 - 1, 2**31, 2**32 - 1]
    root = stream_key(5, "defense")
    by_hand = [jax.random.key_data(jax.random.fold_in(root, np.uint32(i))) for i in indices]
    for form in (indices, np.array(indices), np.array(indices, np.uint32)):
        np.testing.assert_array_equal(jax.random.key_data(image_keys(5, form)), by_hand)
    assert len({tuple(key.tolist()) for key in by_hand}) == len(indices)
    traced = jax.jit(lambda i: jax.random.key_data(image_keys(5, i)))(np.arange(3))
    np.testing.assert_array_equal(traced, jax.random.key_data(image_keys(5, range(3))))
    assert image_keys(5, []).shape == (0,)
