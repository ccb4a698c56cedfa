"""CIFAR-10 by TFDS, with this project's own networks: a U-Net score model, a residual classifier.

TFDS must have prepared the data set with array_record (the error says how where it is missing);
--config.data.dir or TFDS_DATA_DIR point at a prepared copy. The attack budget is the paper's:
Linf 8/255, 40 iterations, 15 purifications per gradient, S 10, T 10, sigma 0.25. Meant for GPUs or
TPUs; on CPU cores reduce --config.eval.num_images and the attacks' num_steps and eot_samples. No
accuracy is stated here because none was measured yet.
"""

from configs.base import attack, base

EPS = 8 / 255


def get_config():
    config = base()
    config.data.name = "cifar10"

    config.classifier.network.update(widths=(64, 128, 256), blocks=3)
    config.classifier.train.update(
        num_steps=40_000, batch_size=128, warmup_steps=1000, augment="flip_crop"
    )
    config.score.network.update(widths=(128, 256, 256), blocks=2)
    config.score.train.update(
        num_steps=300_000, batch_size=128, learning_rate=1e-4, warmup_steps=1000, augment="flip"
    )

    config.eval.update(num_images=500, num_draws=4, batch_size=64)
    # chunk: 64 images x 4 draws at once; more where memory allows
    budget = dict(eps=EPS, num_steps=40, eot_samples=15, chunk=4)
    config.attacks.blind = attack("blind", eps=EPS)
    config.attacks.bpda = attack("bpda", **budget)
    config.attacks.exact = attack(
        "exact", **budget, defenses=("noise_only", "one_step", "schedule", "adp")
    )
    return config
