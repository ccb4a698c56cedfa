"""The published networks against independent PyTorch twins with the same weights, imported by name;
and what an import refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purify import models
from purify.models import importing
from purify.models.importing import Architecture, import_weights, read_weights
from purify.models.networks import Score
from purify.purifiers.noise import add_noise
from purify.purifiers.reference import ReferenceADP

torch = pytest.importorskip("torch", reason="PyTorch is not installed: requirements-torch.txt")
safetensors = pytest.importorskip("safetensors.torch")
twins = pytest.importorskip("tests.torch_twins")

SMALL = {
    "ncsnv2": (dict(arch="ncsnv2", features=8), lambda: twins.NCSNv2(8)),
    "wrn28_10": (
        dict(arch="wide_resnet", depth=10, widen=2, form="meliketoy"),
        lambda: twins.MeliketoyWideResNet(10, 2, 7),
    ),
    "wrn28_10_standard": (
        dict(arch="wide_resnet", depth=16, widen=2, form="robustbench"),
        lambda: twins.StandardWideResNet(16, 2, 7),
    ),
    "resnet20": (dict(arch="cifar_resnet", depth=20), lambda: twins.CifarResNet(20, 10)),
}


def randomised(twin):
    """A twin in which no parameter is zero or one, which would hide a fault."""
    torch.manual_seed(0)
    for parameter in twin.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        offset = 0.0 if parameter.ndim > 1 else 1.0
        parameter.data = offset + torch.randn_like(parameter) * 0.5 / fan_in**0.5
    for name, buffer in twin.named_buffers():
        if "running" in name:
            buffer.data = 0.5 + torch.rand_like(buffer)
    return twin.eval()


def state_of(twin) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in twin.state_dict().items()}


def compare_small(monkeypatch, arch: str, size: int = 32, channels: int = 3):
    options, make = SMALL[arch]
    full = importing.ARCHITECTURES[arch]
    small = Architecture(full.role, options, (size, size, channels))
    monkeypatch.setitem(importing.ARCHITECTURES, arch, small)
    twin = randomised(make() if channels == 3 else twins.NCSNv2(8, channels))
    compare(arch, twin, size, channels)


def compare(arch: str, twin, size: int = 32, channels: int = 3):
    """The imported network's outputs for two images are the twin's."""
    settings, variables = import_weights(arch, state_of(twin))
    images = np.random.default_rng(0).random((2, size, size, channels)).astype(np.float32)
    ours = np.asarray(jax.jit(models.build(**settings).apply)(variables, images))
    # Published classifiers leave to their data loader what is part of the network here.
    mean, std = (np.array(settings.get(k, v), np.float32) for k, v in (("mean", 0), ("std", 1)))
    with torch.no_grad():
        theirs = twin(torch.tensor(((images - mean) / std).transpose(0, 3, 1, 2))).numpy()
    theirs = theirs.transpose(0, 2, 3, 1) if theirs.ndim == 4 else theirs
    assert ours.shape == theirs.shape
    # Float32 sums in another order, over twenty layers.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("arch", SMALL)
def test_a_network_with_imported_weights_is_its_twin(monkeypatch, arch):
    compare_small(monkeypatch, arch)


def test_ncsnv2_takes_28_by_28_grey_images(monkeypatch):
    compare_small(monkeypatch, "ncsnv2", 28, 1)


@pytest.mark.parametrize("arch", importing.ARCHITECTURES)
def test_full_size_architectures_have_the_published_number_of_parameters(arch):
    """Of the twins at full size, which are built without memory for their weights."""
    with torch.device("meta"):
        twin = {
            "ncsnv2": lambda: twins.NCSNv2(128),
            "ncsnv2_28": lambda: twins.NCSNv2(128, 1),
            "wrn28_10": lambda: twins.MeliketoyWideResNet(28, 10, 10),
            "wrn28_10_standard": lambda: twins.StandardWideResNet(28, 10, 10),
            "wrn70_16_standard": lambda: twins.StandardWideResNet(70, 16, 10),
            "resnet20": lambda: twins.CifarResNet(20, 10),
            "resnet56": lambda: twins.CifarResNet(56, 10),
        }[arch]()
    expected = sum(p.numel() for p in twin.parameters())
    architecture = importing.ARCHITECTURES[arch]
    options = dict(architecture.network)
    if architecture.role == "classifier":
        options["num_classes"] = 10
    network = models.build(**options)
    image = jnp.zeros((1, *architecture.image_shape))
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["ncsnv2", "wrn28_10", "wrn28_10_standard"])
def test_a_full_size_network_with_imported_weights_is_its_twin(arch):
    make = {
        "ncsnv2": lambda: twins.NCSNv2(128),
        "wrn28_10": lambda: twins.MeliketoyWideResNet(28, 10, 10),
        "wrn28_10_standard": lambda: twins.StandardWideResNet(28, 10, 10),
    }[arch]
    compare(arch, randomised(make()))


@pytest.mark.slow
def test_the_reference_adp_takes_the_published_path(monkeypatch, x64):
    """In double precision, where steps lie inside their bounds and at the upper one, and an image
    stops while its batch goes on."""
    small = Architecture("score", dict(arch="ncsnv2", features=4), (16, 16, 3))
    monkeypatch.setitem(importing.ARCHITECTURES, "ncsnv2", small)
    twin = randomised(twins.NCSNv2(4)).double()
    settings, variables = import_weights("ncsnv2", state_of(twin))
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
    adp = ReferenceADP(Score(variables, models.build(**settings)), sigma=0.05, lam=7e-4)
    images = np.random.default_rng(0).random((4, 16, 16, 3))
    keys = jax.random.split(jax.random.key(0), 4)
    noised = jax.vmap(lambda key, x: add_noise(key, x, 0.05))(keys, images)
    theirs, sizes = twins.published_adp(
        twin, torch.tensor(np.transpose(noised, (0, 3, 1, 2))), lam=7e-4, tau=1e-3, delta=1e-3,
        num_steps=10,
    )  # fmt: skip
    sizes, theirs = np.stack(sizes, axis=1), theirs[-1].numpy().transpose(0, 2, 3, 1)
    inside = (sizes > adp.tau) & (sizes < 0.999 * adp.alpha_max)
    assert (inside.sum(1) >= 3).sum() >= 3 and (sizes == adp.alpha_max).any()
    stopped = sizes[:, -1] == 0
    assert stopped.any() and not stopped.all()
    for loop in ("while", "scan"):
        trace = adp.replace(loop=loop).trace
        ours, path = jax.jit(jax.vmap(trace, axis_name="batch"))(keys, jnp.asarray(images))
        # A difference over delta loses three of sixteen digits, in each of ten steps.
        np.testing.assert_allclose(path.step_sizes, sizes, rtol=1e-7)
        np.testing.assert_allclose(ours, theirs, atol=1e-8)
    alone = adp.replace(axis_name=None)
    apart = jax.jit(jax.vmap(alone.trace))(keys, jnp.asarray(images))[0]
    moved = np.abs(np.asarray(apart - theirs)).max((1, 2, 3))
    np.testing.assert_array_equal(moved > 1e-6, stopped)  # its neighbours stretch it


def test_prefixes_of_wrappers_are_taken_off_and_averages_preferred(tmp_path):
    weights = state_of(randomised(twins.CifarResNet(20, 10)))
    raw = {name: w + 1 for name, w in weights.items()}
    named = {name for name, w in weights.items() if w.ndim}
    for names in ("{}", "module.{}", "state_dict.module.{}", "ema.module.{}"):
        path = tmp_path / "weights.npz"
        counters = {"n_averaged": np.array(7), "epoch": np.array(3)}
        np.savez(path, **counters, **{names.format(name): w for name, w in weights.items()})
        assert read_weights(path).keys() == named
    both = {f"module.{k}": w for k, w in raw.items()} | {f"ema.{k}": w for k, w in weights.items()}
    tensors = {name: torch.tensor(w) for name, w in both.items()}
    safetensors.save_file(tensors, tmp_path / "weights.safetensors")
    read = read_weights(tmp_path / "weights.safetensors")
    assert read.keys() == named
    np.testing.assert_array_equal(read["linear.weight"], weights["linear.weight"])


def test_weights_that_do_not_fit_are_listed_and_refused():
    weights = state_of(randomised(twins.CifarResNet(20, 10)))
    weights["layer1.0.conv1.weight"] = weights["layer1.0.conv1.weight"][:, :5]
    del weights["layer2.1.bn2.bias"]
    weights["layer4.0.conv1.weight"] = weights["conv1.weight"]
    weights["strange"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError) as error:
        import_weights("resnet20", weights)
    said = str(error.value)
    assert said.splitlines() == [
        "these are not the weights of resnet20: 1 of another shape, 2 unknown, 1 missing",
        "  layer1.0.conv1.weight has shape (16, 5, 3, 3), expected (16, 16, 3, 3)",
        "  strange (3,) is no weight of this network",
        "  layer4.0.conv1.weight is no weight of this network",
        "  layer2.1.bn2.bias is missing",
    ]
    with pytest.raises(ValueError, match="'vgg' is unknown; known: ncsnv2"):
        import_weights("vgg", weights)


def test_pickles_are_never_loaded_and_damage_is_one_line(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="must be .safetensors or .npz"):
        read_weights(tmp_path / "weights.pt")
    np.savez(tmp_path / "object.npz", a=np.array([{}], dtype=object))
    (tmp_path / "torn.npz").write_bytes((tmp_path / "object.npz").read_bytes()[:50])
    (tmp_path / "torn.safetensors").write_bytes(b"\x10")
    for name in ("object.npz", "torn.npz", "torn.safetensors"):
        with pytest.raises(ValueError, match=f"{name}' cannot be read") as error:
            read_weights(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="does not exist"):
        read_weights(tmp_path / "none.npz")
