"""--mode=purify: purify a folder of images, or an array, with the configured purifier."""

from pathlib import Path

import jax
import numpy as np

from purify.data.image_io import open_images
from purify.evals.core.defenses import build_purifier, purifier_options
from purify.evals.core.engine import check_finite
from purify.evals.core.inputs import load_networks, network_runs, shape_of
from purify.random import check_seed, image_keys
from purify.runtime import parallel
from purify.runtime.compilation import jit
from purify.runtime.messages import counted, shown
from purify.runtime.progress import progress


def run(config, workdir: Path, input: str | None, output: str | None) -> None:
    """Write purified versions of the images in `input` to `output`, in the same form.

    One purification each, with noise of its own, folded from the seed and the image's position.
    """
    for name, value in (("input", input), ("output", output)):
        if not value:
            raise ValueError(f"--mode=purify needs --{name}=PATH")
    check_seed(config.seed, "config.seed")
    parallel.check_batch_size("config.eval.batch_size", config.eval.batch_size)
    name = config.defense.purifier
    purifier_options(config, name, field="config.defense.purifier")
    runs = network_runs(config, workdir, [name], needed=())
    networks = load_networks(runs)
    source = open_images(input, output, shape_of(runs) if runs else None)
    purifier = parallel.replicate(build_purifier(config, name, networks))

    @jit
    def purify(purifier, keys, images):
        return jax.vmap(purifier, axis_name="batch")(keys, images)

    couples_batch = getattr(purifier, "axis_name", None) is not None
    batch_size = parallel.balanced(config.eval.batch_size, len(source.images), blocks=couples_batch)
    purified = np.empty_like(source.images)
    with progress(total=len(purified), desc=f"purify ({name})", unit="image") as bar:
        for start in range(0, len(purified), batch_size):
            at = np.arange(start, min(start + batch_size, len(purified)))
            padded = np.resize(at, batch_size)
            batch = parallel.shard(
                (image_keys(config.seed, padded, stream="purify"), source.images[padded])
            )
            purified[at] = jax.device_get(purify(purifier, *batch))[: len(at)]
            check_finite(purified[at], at, f"images purified by {name}")
            bar.update(len(at))
    source.write(purified)
    print(f"wrote {counted(len(purified), 'purified image')} to {shown(output)}")
