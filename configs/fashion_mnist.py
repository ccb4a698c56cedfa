"""Fashion-MNIST, 28 x 28, from its IDX files.

They come with Debian's package: `apt-get install dataset-fashion-mnist`; --config.data.path=DIR
reads them from elsewhere. No accuracy is stated here because none was measured yet; on 2 CPU cores
training and evaluation as configured take hours.
"""

from configs.base import attack, base

EPS = 0.1


def get_config():
    config = base()
    config.data.name = "fashion_mnist_idx"

    config.classifier.train.update(num_steps=4000, batch_size=128, augment="flip_crop")
    config.score.network.update(widths=(32, 64, 64))
    config.score.train.update(num_steps=10000, schedule="cosine")

    budget = dict(eps=EPS, num_steps=15, eot_samples=4)
    config.defense.num_runs = 5
    config.attacks.blind = attack("blind", eps=EPS)
    config.attacks.bpda = attack("bpda", **budget)
    config.attacks.exact = attack(
        "exact", **budget, defenses=("noise_only", "one_step", "schedule", "adp"), num_images=100
    )
    return config
