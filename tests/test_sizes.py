"""The papers' networks with random weights, from the command line to files of the papers' size."""

import re
from pathlib import Path

import numpy as np
import pytest

import pqnet
from pqnet import Model
from pqnet.cli.main import main
from pqnet.demo import model_path
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.pipeline import FileSizes, resolve_recipe

MIB = 2**20
IMAGE, TEXT = ["--input", "1x3x64x64"], ["--input", "input_ids=BxT:int64", "--size", "T=8"]
# Module of tests/nets.py, its input, and the presets with the bytes that the papers state; a file also holds names,
# structure and a golden record, which papers do not count.
NETWORKS = {
    "resnet50": (
        IMAGE,
        {
            "small-blocks": 5.09 * MIB,
            "bgd-resnet50-small": 5.09 * MIB,
            "large-blocks": 3.19 * MIB,
            "bgd-resnet50-large": 3.19 * MIB,
        },
    ),
    "efficientnet_b3": (IMAGE, {"ipq-efficientnet": 3.3 * MIB}),
    "roberta_base_shared": (TEXT, {"ipq-transformer": 14 * MIB}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_files_of_the_papers_networks_are_of_the_papers_size(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    inputs, presets = NETWORKS[name]
    assert main(["convert", "torch", f"nets:{name}", *inputs, "-o", "model.h5"]) == 0
    for preset, most in presets.items():
        capsys.readouterr()
        assert main(["quantize", "model.h5", "--preset", preset, "--dry-run"]) == 0
        found = re.search(r"file at most (\d+) bytes", capsys.readouterr().out)
        assert found is not None
        assert 0.5 * most < int(found[1]) <= most, preset


@pytest.mark.parametrize("preset", ["small-blocks", "bgd-resnet50-large", "ipq-efficientnet"])
def test_a_dry_run_says_what_the_file_takes(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["quantize", str(model_path()), "--preset", preset]
    assert main([*line, "--metric", "none", "--no-balanced", "-o", "small.h5"]) == 0
    capsys.readouterr()
    assert main([*line, "--dry-run"]) == 0
    out = capsys.readouterr().out
    said, took = int(re.search(r"file at most (\d+) bytes", out)[1]), Path("small.h5").stat().st_size  # type: ignore[index]
    assert took <= said <= took + 2000
    assert set(pqnet.load(model_path()).graph.layers()) <= {row.split(" ")[0] for row in out.splitlines()}


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--dry-run", "-o", "x.h5", "--preset", "small-blocks"], "expected one of --output and --dry-run, got both"),
        (["--preset", "small-blocks"], "expected one of --output and --dry-run, got neither"),
        (["--dry-run", "--target-size", "3x"], "expected --preset or --recipe, got neither; pqnet plan has sizes"),
    ],
)
def test_bad_dry_runs(more: list[str], match: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", str(model_path()), *more]) == 2
    assert match in capsys.readouterr().err


def bottlenecks(inputs: int, width: int, n: int) -> list[tuple[int, ...]]:
    first = [(width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1), (4 * width, inputs, 1, 1)]
    return first + [(width, 4 * width, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)] * (n - 1)


def mask_rcnn() -> Model:
    """Return the weights of Mask R-CNN ResNet-50-FPN for COCO, each on an input of its own, in torchvision's order."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7)]
    for inputs, width, n in ((64, 64, 3), (256, 128, 4), (512, 256, 6), (1024, 512, 3)):
        shapes += bottlenecks(inputs, width, n)
    norms = [shape[0] for shape in shapes]
    shapes += [(256, inputs, 1, 1) for inputs in (256, 512, 1024, 2048)] + [(256, 256, 3, 3)] * 4  # pyramid
    shapes += [(256, 256, 3, 3), (3, 256, 1, 1), (12, 256, 1, 1)]  # proposals
    shapes += [(1024, 12544), (1024, 1024), (91, 1024), (364, 1024)]  # boxes
    shapes += [(256, 256, 3, 3)] * 4 + [(91, 256, 1, 1)]  # masks
    biases = [shape[0] for shape in shapes[len(norms) :]]
    inputs = {f"x{n}": ValueInfo(("batch", n, 8, 8)) for n in sorted({s[1] for s in shapes if len(s) == 4})}
    inputs |= {f"f{n}": ValueInfo(("batch", n)) for n in (12544, 1024)}
    b, outputs = GraphBuilder(inputs, {"batch": 1}), {}
    rng = np.random.default_rng(0)
    for i, shape in enumerate(shapes):
        weight = {"weight": rng.standard_normal(shape, np.float32) / 50}
        if i >= len(norms):
            weight["bias"] = rng.standard_normal(shape[0], np.float32)
        y = b.add(
            "conv2d" if len(shape) == 4 else "linear", f"{'x' if len(shape) == 4 else 'f'}{shape[1]}", params=weight
        )
        if i < len(norms):  # folded, as the files of the paper have them
            y = b.add(
                "batch_norm", y, params={r: rng.standard_normal(shape[0], np.float32) for r in ("weight", "bias")}
            )
        outputs[f"y{i}"] = y
    up = {"weight": rng.standard_normal((256, 256, 2, 2), np.float32) / 50, "bias": np.zeros(256, np.float32)}
    outputs["up"] = b.add("conv_transpose2d", "x256", params=up, stride=(2, 2))
    assert sum(biases) + 256 > 0
    return Model(b.build(outputs))


def test_the_layers_of_mask_rcnn_are_of_the_papers_size() -> None:
    model = mask_rcnn()
    assert 44.0e6 < sum(p.size for p in model.graph.params.values()) < 44.5e6  # 44.4 million in torchvision
    recipe = resolve_recipe("bgd-mask-rcnn", model.graph)
    nbytes = FileSizes(model, False, 0).nbytes(recipe)
    assert 6.0 * MIB < nbytes <= 6.65 * MIB
