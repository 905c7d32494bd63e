"""The published checkpoints: import, bytes as the papers count them, and execution from codes against PyTorch."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from realdata import DATA, imagenet_dev, needs_data, normalise

import pqnet
from pqnet import FormatError

torch = pytest.importorskip("torch")
nets = pytest.importorskip("nets")
converters = pytest.importorskip("pqnet_converters")

# file, importer, architecture, (codes, codebooks, other) bytes by the papers' count, right answers of 500
FILES = [
    ("ktb_resnet18_small_blocks.pth", "from_kill_the_bits", "resnet18", (1439616, 96256, 80032), 378),
    ("pqf_resnet18.pth", "from_pqf", "resnet18", (1439616, 96256, 80032), 378),
    ("ktb_resnet50_large_blocks.pth", "from_kill_the_bits", "resnet50", (2784640, 300032, 254112), 390),
]
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # any import of it fails
sys.path.insert(0, sys.argv[1])
import numpy as np, pqnet, realdata
images = realdata.normalise(realdata.imagenet_dev(int(sys.argv[4]))[0])
model = pqnet.load(sys.argv[2])
np.save(sys.argv[3], np.concatenate([model(images[i : i + 20]) for i in range(0, len(images), 20)]))
"""


def read(name):
    return torch.load(DATA / "checkpoints" / name, map_location="cpu", weights_only=True)


def decoded_state(name, kernels):
    """The float state dict of a checkpoint, rebuilt literally by the description of its format.

    ``kernels``: kernel size of every convolution.
    """
    data, state = read(name), {}
    if name.startswith("ktb"):
        for layer, entry in data.items():
            if "centroids" in entry:
                codes = entry["assignments"].long().reshape(entry["n_blocks"], -1).T
                weight = entry["centroids"].float()[codes].reshape(len(codes), -1)
                state[f"{layer}.weight"] = weight
            elif layer == "fc_bias":
                state["fc.bias"] = entry["bias"]
            else:
                state.update({f"{layer}.{field}": value.float() for field, value in entry.items()})
    else:
        for key, value in data.items():
            layer, field = key.rsplit(".", 1)
            if field == "codes_matrix":
                state[f"{layer}.weight"] = data[f"{layer}.codebook"].float()[value.long()].reshape(len(value), -1)
            elif field != "codebook":
                state[key] = value
    for layer, k in kernels.items():
        weight = state[f"{layer}.weight"]
        state[f"{layer}.weight"] = weight.reshape(len(weight), -1, k, k)
    return state


def reference(name, arch):
    """The decoded float network in PyTorch; norms are folded: mean 0, variance 1."""
    module = getattr(nets, arch)()
    kernels = {n: m.kernel_size[0] for n, m in module.named_modules() if isinstance(m, torch.nn.Conv2d)}
    missing, unexpected = module.load_state_dict(decoded_state(name, kernels), strict=False)
    assert not unexpected and all("running" in key or "num_batches" in key for key in missing)
    return module.eval()


@needs_data
@pytest.mark.parametrize("n", [20, pytest.param(500, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize(("name", "importer", "arch", "parts", "right"), FILES)
def test_import_runs_like_the_decoded_network(name, importer, arch, parts, right, n, tmp_path):
    model = getattr(converters, importer)(DATA / "checkpoints" / name, arch)
    size = model.size()
    assert (size.codes, size.codebooks, size.other) == parts
    model.save(tmp_path / "model.h5")
    assert os.path.getsize(tmp_path / "model.h5") <= 1.02 * size.total + 16384

    arguments = [Path(__file__).parent, tmp_path / "model.h5", tmp_path / "logits.npy", n]
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)], check=True, timeout=500)
    ours = np.load(tmp_path / "logits.npy")

    images, labels = imagenet_dev(n)
    module, batches = reference(name, arch), torch.from_numpy(normalise(images)).split(20)
    with torch.no_grad():
        theirs = np.concatenate([module(batch).numpy() for batch in batches])
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
    assert (ours.argmax(1) != theirs.argmax(1)).sum() <= 1
    if n == 500:
        assert abs((ours.argmax(1) == labels).sum() - right) <= 1


@needs_data
def test_codes_and_codebooks_survive_bit_for_bit():
    name = FILES[0][0]
    model, data = converters.from_kill_the_bits(DATA / "checkpoints" / name, "resnet18"), read(name)
    for layer in ("layer1.0.conv1", "layer2.0.downsample.0", "fc"):
        packed, entry = model.graph.params[f"{layer}.weight"], data[layer]
        assert np.array_equal(packed.codebook, entry["centroids"].numpy())
        assert np.array_equal(packed.codes.T.reshape(-1), entry["assignments"].numpy())


@needs_data
@pytest.mark.parametrize(("name", "importer"), [(FILES[0][0], "from_kill_the_bits"), (FILES[1][0], "from_pqf")])
def test_raw_batch_norms_of_user_made_files(name, importer, tmp_path):
    """Files of the tools' users hold running statistics, which kill-the-bits' own loader drops: 0.1 % top-1."""
    data, generator = read(name), torch.Generator().manual_seed(0)

    def raw(weight, bias):
        mean, var = torch.randn(len(weight), generator=generator), torch.rand(len(weight), generator=generator) + 0.5
        scale = weight.float() / (1 + 1e-5) ** 0.5  # what the folded form multiplies with
        return scale * (var + 1e-5).sqrt(), bias.float() + scale * mean, mean, var

    for layer in [k for k in data if "bn" in k or "downsample.1" in k]:
        if importer == "from_kill_the_bits":
            weight, bias, mean, var = raw(data[layer]["weight"], data[layer]["bias"])
            fields = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
            data[layer] = fields | {"num_batches_tracked": torch.tensor(7)}
        elif layer.endswith(".weight"):
            norm = layer.removesuffix(".weight")
            weight, bias, mean, var = raw(data[layer], data[f"{norm}.bias"])
            data |= {layer: weight, f"{norm}.bias": bias, f"{norm}.running_mean": mean, f"{norm}.running_var": var}
            data[f"{norm}.num_batches_tracked"] = torch.tensor(7)
    torch.save(data, tmp_path / "user.pth")
    images = normalise(imagenet_dev(3)[0])
    published, user = (
        getattr(converters, importer)(p, "resnet18") for p in (DATA / "checkpoints" / name, tmp_path / "user.pth")
    )
    want = published(images)
    assert np.abs(user(images) - want).max() <= 1e-4 * np.abs(want).max()
    assert user.size().total == published.size().total  # running statistics are not counted


@needs_data
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("layer1.0.conv1"), "parameter 'layer1.0.conv1.weight' of resnet18 is missing"),
        (lambda d: d.update({"layer9.conv1": d["fc"]}), "layer9.conv1: no quantized layer of resnet18"),
        (lambda d: d["fc"].update(n_blocks=7), "fc: expected assignments that n_blocks divides"),
        (lambda d: d["fc"].update(centroids=d["fc"]["centroids"][:100]), r"fc: codes: expected entries in \[0, 100\)"),
        (
            lambda d: d["bn1"].update(weight=torch.zeros(3)),
            r"bn1.weight: expected shape \(64,\) for resnet18, got \(3,\)",
        ),
        (lambda d: d.update({"bn9": d["bn1"]}), "parameters .*bn9.* do not belong to resnet18"),
        (lambda d: d["bn1"].update(extra=torch.zeros(3)), r"bn1: unknown fields \['extra'\]"),
        (lambda d: d.update({"bn1": 3}), "bn1: expected a dict, got int"),
        (lambda d: d["conv1"].update(weight="x"), "conv1: expected a float16 or float32 tensor, got str"),
        (lambda d: d["fc"].update(centroids=d["fc"]["centroids"] * float("nan")), "finite float16 numbers"),
    ],
)
def test_files_that_do_not_fit_say_where(change, message, tmp_path):
    data = read(FILES[0][0])
    change(data)
    torch.save(data, tmp_path / "bad.pth")
    with pytest.raises(FormatError, match=message):
        converters.from_kill_the_bits(tmp_path / "bad.pth", "resnet18")


@needs_data
def test_the_other_architecture_is_refused():
    for _, importer, arch, _, _ in FILES:
        wrong = {"resnet18": "resnet50", "resnet50": "resnet18"}[arch]
        name = next(n for n, i, a, _, _ in FILES if (i, a) == (importer, arch))
        with pytest.raises(FormatError):
            getattr(converters, importer)(DATA / "checkpoints" / name, wrong)
    with pytest.raises(pqnet.ConfigError, match="arch: expected one of resnet18, resnet50, got 'vgg'"):
        converters.from_pqf(DATA / "checkpoints" / "pqf_resnet18.pth", "vgg")
