"""The OCR chain of the package rapidocr-onnxruntime with pqnet's networks in the place of its ONNX Runtime sessions.

50 rendered lines in three fonts and three sizes go through the package's own chain: text detector, direction
classifier, recognizer. ``equal`` is the share of the letters that are read as with ONNX Runtime (1 - edit distance /
letters), ``right`` and ``runtime_right`` that of the letters that were rendered. Detector and recognizer are planned
and quantized with what their sessions are given for other lines; ``ratio`` is that of the files, float / quantized, and
``bytes`` those of the files. ``over`` is the time of the whole chain over that with ONNX Runtime, the two in turns.

Needs rapidocr-onnxruntime 1.4.4, which asks for opencv, pyclipper, shapely and six, and the folder of real data
(``../shared/data``), for texts; fonts are matplotlib's or the system's DejaVu.

Example: ``python bench/bench_ocr.py --rows float 4x 8x int8``
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from functools import cache, partial
from pathlib import Path

import numpy as np
from common import OtherLoad, emit, machine, paired_medians
from PIL import Image, ImageDraw, ImageFont

import pqnet
from pqnet import Model
from pqnet.pipeline import measure

sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in ("tests", "examples"))

from ocr import NETWORKS, QUANTIZED, Chain, calibration, float_network, sessions
from realdata import stsb

FONTS = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono-Bold")
SIZES = (18, 26, 40)
FOLDERS = ("/usr/share/fonts/truetype/dejavu", "/usr/share/fonts/dejavu", "/usr/share/fonts/TTF")
LETTERS = (12, 40)  # of a line


def text_lines(n: int, split: str, seed: int) -> list[str]:
    """Return beginnings of sentences of the STS benchmark that end with a word."""
    rng = np.random.default_rng(seed)
    sentences = sorted({sentence for texts in stsb(split)[:2] for sentence in texts if sentence.isascii()})
    found = (" ".join(rng.choice(sentences)[: LETTERS[1]].split(" ")[:-1]) for _ in range(10 * n))
    return [line for line in found if len(line) >= LETTERS[0]][:n]


def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Return a font of matplotlib's or of the system."""
    try:
        import matplotlib

        folders = (f"{matplotlib.get_data_path()}/fonts/ttf", *FOLDERS)
    except ModuleNotFoundError:
        folders = FOLDERS
    found = [path for folder in folders if (path := Path(folder, f"{name}.ttf")).exists()]
    return ImageFont.truetype(found[0], size)


@dataclasses.dataclass
class Page:
    """Lines of one font and size below each other, as an image in BGR."""

    lines: list[str]
    image: np.ndarray


def page(lines: list[str], name: str, size: int) -> Page:
    face = font(name, size)
    width = int(max(face.getlength(line) for line in lines)) + 2 * size
    image = Image.new("RGB", (width, int((1.8 * len(lines) + 1) * size)), "white")
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        draw.text((size, int((1.8 * i + 0.5) * size)), line, "black", face)
    return Page(lines, np.ascontiguousarray(np.asarray(image)[..., ::-1]))


def pages(lines: int, split: str, seed: int) -> list[Page]:
    """Return so many lines on nine pages, one for each font and size."""
    looks = [(name, size) for name in FONTS for size in SIZES]
    shares = np.array_split(text_lines(lines, split, seed), len(looks))
    return [page([str(line) for line in share], *look) for share, look in zip(shares, looks, strict=True)]


def read_pages(chain: Chain, shown: list[Page]) -> list[str]:
    """Return what is read on each page, line after line."""
    return ["\n".join(chain.read(each.image)) for each in shown]


def equal_letters(found: list[str], wanted: list[str]) -> float:
    """Return the share of wanted letters that are found: 1 - edit distance / letters."""
    wrong = sum(map(edit_distance, found, wanted))
    return 1 - wrong / sum(map(len, wanted))


def edit_distance(a: str, b: str) -> int:
    """Return how many letters are to be put in, taken out or changed to make one text of the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def differing(found: list[str], wanted: list[str]) -> list[str]:
    """Return the lines that differ, theirs and ours."""
    pairs = zip("\n".join(found).split("\n"), "\n".join(wanted).split("\n"), strict=False)
    return [f"{theirs} -> {ours}" for ours, theirs in pairs if ours != theirs]


def file_bytes(model: Model) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.h5")
        model.save(path)
        return path.stat().st_size


class Quantized:
    """Networks planned to sizes: what plans need is measured once."""

    def __init__(self, models: dict[str, Model], data: dict[str, list[np.ndarray]]) -> None:
        self.models, self.data = models, data
        self.measured = {name: measure(models[name], data[name]) for name in QUANTIZED}

    @cache  # noqa: B019  # one object, as long as the process
    def row(self, row: str) -> dict[str, Model]:
        """Return all networks of a row: ``int8`` is 4x with ranges for integers."""
        if row == "float":
            return self.models
        if row == "int8":
            small, data = self.row("4x"), self.data
            ranged = {n: pqnet.quantize(small[n], None, data[n], activations="int8") for n in QUANTIZED}
            return small | ranged
        recipes = {name: self.measured[name].plan(row).recipe for name in QUANTIZED}
        return self.models | {n: pqnet.quantize(self.models[n], recipes[n], self.data[n]) for n in QUANTIZED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=["float", "4x", "8x", "int8"])
    parser.add_argument("--lines", type=int, default=50)
    parser.add_argument("--calibration", type=int, default=54, help="lines")
    parser.add_argument("--runs", type=int, default=3, help="of the chain, to time it")
    args = parser.parse_args()
    emit("machine", **machine(["onnxruntime"]))
    shown, others = pages(args.lines, "test", 1), pages(args.calibration, "dev", 2)
    float_models = {name: float_network(name) for name in NETWORKS}
    theirs = Chain()
    data = calibration(each.image for each in others)
    read = read_pages(theirs, shown)
    rendered = ["\n".join(each.lines) for each in shown]
    start = time.perf_counter()
    small = Quantized(float_models, data) if args.rows != ["float"] else None
    emit("measured", seconds=time.perf_counter() - start)
    for row in args.rows:
        start, load = time.perf_counter(), OtherLoad()
        models = float_models if small is None else small.row(row)
        seconds = time.perf_counter() - start
        compute = "int8" if row == "int8" else "float32"
        ours = Chain(**sessions({name: Model(model.graph, compute=compute) for name, model in models.items()}))
        found = read_pages(ours, shown)
        times = paired_medians(partial(read_pages, ours, shown), partial(read_pages, theirs, shown), args.runs)
        emit(
            row,
            equal=equal_letters(found, read),
            right=equal_letters(found, rendered),
            runtime_right=equal_letters(read, rendered),
            letters=sum(map(len, read)),
            bytes={name: file_bytes(models[name]) for name in QUANTIZED},
            ratio={name: file_bytes(float_models[name]) / file_bytes(models[name]) for name in QUANTIZED},
            over=times[0] / times[1],
            seconds_to_quantize=seconds,
            differing=differing(found, read),
            other_load=load.share(),
        )


if __name__ == "__main__":
    main()
