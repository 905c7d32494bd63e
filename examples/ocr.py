"""Reads the text on images with the chain of rapidocr-onnxruntime, its networks run by pqnet from their codes.

    pip install rapidocr-onnxruntime==1.4.4
    python examples/ocr.py convert ocr/ page1.png page2.png --target 4x
    python examples/ocr.py read ocr/ scan.png

``convert`` imports the package's three networks, and makes the text detector and the recognizer smaller by what the
chain gives them for these pages: a dozen with text of later use. ``read`` makes no session of ONNX Runtime.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import rapidocr_onnxruntime as rapidocr

import pqnet
from pqnet import Model, PQNetError
from pqnet_converters import from_onnx

# By name the module and attributes that hold the session of a network, and its file.
NETWORKS = {
    "detector": ("ch_ppocr_det.text_detect", "text_det.infer", "ch_PP-OCRv4_det_infer"),
    "classifier": ("ch_ppocr_cls.text_cls", "text_cls.infer", "ch_ppocr_mobile_v2.0_cls_infer"),
    "recognizer": ("ch_ppocr_rec.text_recognize", "text_rec.session", "ch_PP-OCRv4_rec_infer"),
}
QUANTIZED = ("detector", "recognizer")
CROPS, SIDE = 2, 320  # squares of what a detector is given for each page, and their side: pages are ten times as large


def float_network(name: str) -> Model:
    """Return a network of the package, with the characters that the recognizer knows as labels."""
    import onnx

    path = Path(rapidocr.__file__).parent / "models" / f"{NETWORKS[name][2]}.onnx"
    model = from_onnx(path)
    known = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    if "character" not in known:
        return model
    return pqnet.with_processing(model, labels=["blank", *known["character"].splitlines(), " "])


class Session:
    """What the package's session of ONNX Runtime is to the chain, computed by pqnet."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Return the outputs for a batch of images."""
        return list(self.model.run({next(iter(self.model.inputs)): images}).values())

    def have_key(self) -> bool:
        """Tell whether the network knows its characters."""
        return "labels" in self.model.graph.meta.get("processing", {})

    def get_character_list(self) -> list[str]:
        """Return the characters, without the first and the last label, which the package adds."""
        return list(self.model.graph.meta["processing"]["labels"][1:-1])


class Recorder:
    """A session that also keeps what it is given."""

    def __init__(self, session: Any) -> None:
        self.session, self.given = session, []

    def __call__(self, images: np.ndarray) -> Any:
        """Return what the session returns."""
        self.given.append(images)
        return self.session(images)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


class Chain:
    """The package's chain; ``sessions`` by name take the place of its own."""

    def __init__(self, **sessions: Any) -> None:
        with ExitStack() as stack:
            for name, session in sessions.items():
                module = import_module(f"rapidocr_onnxruntime.{NETWORKS[name][0]}")
                stack.enter_context(patch.object(module, "OrtInferSession", lambda config, session=session: session))
            self.engine = rapidocr.RapidOCR()

    def session(self, name: str) -> Any:
        """Return the session of a network."""
        stage, attribute = NETWORKS[name][1].split(".")
        return getattr(getattr(self.engine, stage), attribute)

    def read(self, image: Any) -> list[str]:
        """Return the lines of text on an image: a path, or an array in BGR."""
        return [text for _, text, _ in self.engine(image)[0] or []]


def crops(images: Iterable[np.ndarray], seed: int) -> list[np.ndarray]:
    """Return squares of what a detector is given."""
    rng, found = np.random.default_rng(seed), []
    for image in list(images) * CROPS:
        height, width = (min(SIDE, size) for size in image.shape[2:])
        top, left = (rng.integers(0, size - SIDE + 1) if size > SIDE else 0 for size in image.shape[2:])
        found.append(image[:, :, top : top + height, left : left + width])
    return found


def calibration(images: Iterable[Any]) -> dict[str, list[np.ndarray]]:
    """Return what the chain gives to the networks that are to be made smaller, for some pages."""
    theirs = Chain()
    recording = Chain(**{name: Recorder(theirs.session(name)) for name in QUANTIZED})
    for image in images:
        recording.read(image)
    given = {name: recording.session(name).given for name in QUANTIZED}
    if not all(given.values()):
        raise PQNetError("pages: expected images with text on them, got none")
    return given | {"detector": crops(given["detector"], seed=3)}


def convert(folder: Path, pages: Iterable[Any], target: str) -> None:
    """Write the networks to a folder, two of them planned to a size such as ``4x``."""
    data = calibration(pages)
    folder.mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        model = float_network(name)
        if name in data:
            recipe = pqnet.plan(model, data[name], target)
            model = pqnet.quantize(model, recipe, data[name])
        model.save(folder / f"{name}.h5")


def load(folder: Path) -> Chain:
    """Return the chain with the networks of a folder."""
    return Chain(**sessions({name: pqnet.load(folder / f"{name}.h5") for name in NETWORKS}))


def sessions(models: Mapping[str, Model]) -> dict[str, Session]:
    """Return networks as sessions."""
    return {name: Session(model) for name, model in models.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, nargs in (("convert", "+"), ("read", "+")):
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path)
        command.add_argument("images", type=Path, nargs=nargs)
        if name == "convert":
            command.add_argument("--target", default="4x", help="size, as for pqnet plan")
    args = parser.parse_args()
    try:
        if missing := [str(path) for path in args.images if not path.is_file()]:
            raise PQNetError(f"images: expected existing files, got {missing[0]}")
        if args.command == "convert":
            convert(args.folder, map(str, args.images), args.target)
            return 0
        chain = load(args.folder)
        for path in args.images:
            for line in chain.read(str(path)):
                print(line)
    except (PQNetError, rapidocr.LoadImageError) as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
