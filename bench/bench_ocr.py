"""The OCR chain of the package rapidocr-onnxruntime with pqnet's networks in the place of its ONNX Runtime sessions.

50 rendered lines in three fonts and three sizes go through the package's own chain: text detector, direction
classifier, recognizer. ``equal`` is the share of the letters that are read as with ONNX Runtime (1 - edit distance /
letters), ``right`` and ``runtime_right`` that of the letters that were rendered. Detector and recognizer are planned and
quantized with what their sessions are given for other lines; ``ratio`` is that of the files, float / quantized, and
``bytes`` those of both files. ``over`` is the time of the whole chain over that with ONNX Runtime, the two in turns.

Needs rapidocr-onnxruntime 1.4.4, which asks for opencv, pyclipper, shapely and six; fonts are matplotlib's or the
system's DejaVu.

Example: ``python bench/bench_ocr.py --rows float 4x 8x int8``
"""

import argparse
import dataclasses
import difflib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rapidocr_onnxruntime as rapidocr
from common import OtherLoad, emit, machine, paired_medians
from PIL import Image, ImageDraw, ImageFont

import pqnet
from pqnet import Model
from pqnet_converters import from_onnx

NETWORKS = {"detector": "text_det.infer", "classifier": "text_cls.infer", "recognizer": "text_rec.session"}
QUANTIZED = ("detector", "recognizer")
FONTS = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono-Bold")
SIZES = (18, 26, 40)
FOLDERS = ("/usr/share/fonts/truetype/dejavu", "/usr/share/fonts/dejavu", "/usr/share/fonts/TTF")
WORDS = """a about above account across address after again age air all among amount and animal answer around art ask
balance bank bill black blue board body book both box bridge brother building burn business by cable cat cause centre
chance change cheap city clear cloud coast cold colour company complete cook copper corner cotton country cross cup
daughter day deep degree delivery design detail direction distance door doubt down dream dress drive early earth east
effect engine enough equal error every example exchange expert family farm feather feeling field fight final finger fire
fish flag floor flower fly fold food foot forest form forward frame free friend from front fruit full garden general
glass gold good grain grass great green group growth guide hammer hand happy harbour hat head heart heavy history hole
hope horse hour house humour ice idea important increase industry ink insect invention iron island jelly jewel join
journey judge jump just keep kettle key kick kind kiss knee knife knot knowledge land language last laugh law lead leaf
learning left letter level library lift light like limit line list little living lock long loss loud love low machine
make manager map mark market mass match material meal measure meeting memory metal middle milk mind mine minute mist
money month moon morning mother motion mountain mouth move much muscle music nail name narrow nation nature near neck
need needle nerve net new night noise north nose note number office oil old only open opinion orange order other out
oven over owner page pain paint paper parcel part past paste payment peace pencil person picture pipe place plant plate
play please pleasure pocket point poison polish position possible pot power present price print prison private process
produce profit property prose protest public pull pump purpose push quality question quick quiet quite rail rain range
rate ray reaction reading ready reason receipt record regret relation religion request respect rest reward rhythm rice
right river road roll roof room root rough round rule run safe sail salt same sand say scale school science scissors
screw sea seat second secret seed selection self send sense servant shade shake shame sharp sheep shelf ship shirt shock
short side sign silk silver simple sister size skin sky sleep slip slow small smash smell smile smoke smooth snake sneeze
snow soap society sock soft some son song sort sound soup south space spade special sponge spoon spring square stage
stamp star start statement station steam steel stem step stick still stitch stocking stomach stone stop store story
straight strange street stretch strong structure substance such sudden sugar suggestion summer sun support surprise
sweet swim system table tail take talk tall taste tax teaching tendency test than theory there thick thin thing thought
thread throat through thumb thunder ticket tight till time tin tired toe together tomorrow tongue tooth top touch town
trade train transport tray tree trick trouble trousers true turn twist umbrella under unit value verse very vessel view
violent voice waiting walk wall war warm wash waste watch water wave wax way weather week weight well west wet wheel when
whip whistle white wide will wind window wine wing winter wire wise with woman wood wool word work world worm wound
writing wrong year yellow yes yesterday you young""".split()


def text_line(rng: np.random.Generator) -> str:
    """Return three to six words, some of them with a capital or a stop, and a number."""
    words = [str(word) for word in rng.choice(WORDS, rng.integers(2, 6))]
    words = [word.capitalize() if rng.random() < 0.3 else word for word in words]
    words.insert(rng.integers(len(words) + 1), str(rng.integers(10 ** rng.integers(1, 5))))
    return " ".join(words) + str(rng.choice(["", ".", ",", "!", "?", ":", ";"]))


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


def pages(lines: int, seed: int) -> list[Page]:
    """Return so many lines on nine pages, one for each font and size."""
    rng = np.random.default_rng(seed)
    looks = [(name, size) for name in FONTS for size in SIZES]
    shares = np.array_split([text_line(rng) for _ in range(lines)], len(looks))
    return [page([str(line) for line in share], *look) for share, look in zip(shares, looks, strict=True)]


class Session:
    """What the package's session of ONNX Runtime is to the chain, computed by pqnet."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        return list(self.model.run({next(iter(self.model.inputs)): images}).values())


class Recorder:
    """A session that also keeps what it is given."""

    def __init__(self, session: Any) -> None:
        self.session, self.given = session, []

    def __call__(self, images: np.ndarray) -> Any:
        self.given.append(images)
        return self.session(images)


class Chain:
    """The package's chain; ``sessions`` by name take the place of its own."""

    def __init__(self, **sessions: Any) -> None:
        self.engine = rapidocr.RapidOCR()
        for name, session in sessions.items():
            stage, attribute = NETWORKS[name].split(".")
            setattr(getattr(self.engine, stage), attribute, session)

    def session(self, name: str) -> Any:
        stage, attribute = NETWORKS[name].split(".")
        return getattr(getattr(self.engine, stage), attribute)

    def read(self, shown: list[Page]) -> list[str]:
        """Return what is read on each page, line after line."""
        return ["\n".join(text for _, text, _ in self.engine(each.image)[0] or []) for each in shown]


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


def network_file(name: str) -> str:
    config = {"detector": "PP-OCRv4_det", "classifier": "ppocr_mobile_v2.0_cls", "recognizer": "PP-OCRv4_rec"}
    return str(Path(rapidocr.__file__).parent / "models" / f"ch_{config[name]}_infer.onnx")


def quantized(model: Model, row: str, data: list[np.ndarray]) -> Model:
    """Return a network planned to a size; as ``int8`` at 4x, with ranges for integers."""
    ratio = "4x" if row == "int8" else row
    recipe = pqnet.plan(model, data, ratio)
    activations = "int8" if row == "int8" else None
    return pqnet.quantize(model, recipe, data, activations=activations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=["float", "4x", "8x", "int8"])
    parser.add_argument("--lines", type=int, default=50)
    parser.add_argument("--calibration", type=int, default=108, help="lines")
    parser.add_argument("--runs", type=int, default=3, help="of the chain, to time it")
    args = parser.parse_args()
    emit("machine", **machine(["onnxruntime"]))
    shown, others = pages(args.lines, seed=1), pages(args.calibration, seed=2)
    float_models = {name: from_onnx(network_file(name)) for name in NETWORKS}
    theirs = Chain()
    recording = Chain(**{name: Recorder(theirs.session(name)) for name in QUANTIZED})
    recording.read(others)
    read = theirs.read(shown)
    rendered = ["\n".join(each.lines) for each in shown]
    for row in args.rows:
        start, load = time.perf_counter(), OtherLoad()
        models = dict(float_models)
        if row != "float":
            given = {name: recording.session(name).given for name in QUANTIZED}
            models |= {name: quantized(models[name], row, given[name]) for name in QUANTIZED}
        seconds = time.perf_counter() - start
        compute = "int8" if row == "int8" else "float32"
        ours = Chain(**{name: Session(Model(model.graph, compute=compute)) for name, model in models.items()})
        found = ours.read(shown)
        times = paired_medians(lambda: ours.read(shown), lambda: theirs.read(shown), args.runs)
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
