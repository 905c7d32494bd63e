"""The network and images that come with the package."""

import numpy as np

import pqnet
from pqnet.demo import load_images, model_path


def test_files_are_small() -> None:
    files = list(model_path().parent.glob("*.h5")) + list(model_path().parent.glob("*.npz"))
    assert len(files) == 2 and sum(path.stat().st_size for path in files) < 1_000_000


def test_images_are_pixels_in_0_to_1_and_the_sets_differ() -> None:
    calibration, held_out, labels = load_images()
    assert calibration.shape == (1297, 1, 8, 8) and held_out.shape == (500, 1, 8, 8) and labels.shape == (500,)
    for images in (calibration, held_out):
        assert images.dtype == np.float32 and images.min() == 0 and images.max() == 1
        assert np.array_equal(images * 16, np.round(images * 16))
    assert set(labels.tolist()) == set(range(10))
    assert not {image.tobytes() for image in calibration} & {image.tobytes() for image in held_out}


def test_float_accuracy_on_held_out_images() -> None:
    _, held_out, labels = load_images()
    assert (pqnet.load(model_path())(held_out).argmax(1) == labels).mean() >= 0.985


def test_golden_outputs_replay() -> None:
    model = pqnet.load(model_path())
    assert model.golden is not None and model.golden.outputs.keys() == model.outputs.keys()
    for name, got in model.run(model.golden.inputs()).items():
        want = model.golden.outputs[name]
        assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
