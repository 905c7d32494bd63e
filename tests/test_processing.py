"""Images, texts and labels as a model file describes them: against torchvision's steps, Hugging Face, and bad input."""

import builtins
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

import pqnet
from pqnet import ImageInput, Model, PQNetError, TextInput
from pqnet.cli.main import main
from pqnet.demo import load_images, model_path
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.processing import IMAGENET, Processing, read_labels, read_processing

PHOTOS = load_sample_images().images
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DIGITS = ImageInput(resize=(8, 8), colors="L")


def torchvision_steps(image: Image.Image, side: int, crop: int, filter: Any = Image.Resampling.BILINEAR) -> np.ndarray:
    """Resize(side), CenterCrop(crop), ToTensor, Normalize of torchvision's transforms, step by step, in Pillow."""
    width, height = image.size
    short, long = (width, height) if width <= height else (height, width)
    longer = int(side * long / short)
    image = image.resize((side, longer) if width <= height else (longer, side), filter)
    width, height = image.size
    if crop > width or crop > height:
        padded = Image.new("RGB", (max(crop, width), max(crop, height)))
        padded.paste(image, ((crop - width) // 2 if crop > width else 0, (crop - height) // 2 if crop > height else 0))
        image = padded
    top, left = round((image.height - crop) / 2.0), round((image.width - crop) / 2.0)
    image = image.crop((left, top, left + crop, top + crop))
    pixels = np.asarray(image).astype(np.float32).transpose(2, 0, 1) / np.float32(255)
    return (pixels - np.float32(MEAN)[:, None, None]) / np.float32(STD)[:, None, None]


def classifier(*shape: int | str, classes: int = 10, last: str | None = None, dtype: str = "float32") -> Model:
    """Return a network that scores images of a shape (channels, height, width) by their mean, or (H, W, channels)."""
    b = GraphBuilder(
        {"image": ValueInfo(("batch", *shape), dtype)}, {"batch": 2} | {s: 8 for s in shape if isinstance(s, str)}
    )
    x, axis = b.add("cast", "image", dtype="float32"), shape.index(3)
    mean = b.add("mean", x, axes=tuple({1, 2, 3} - {axis + 1}))
    weight = np.random.default_rng(0).standard_normal((classes, 3)).astype(np.float32)
    y = b.add("linear", mean, params={"weight": weight})
    return Model(b.build({"scores": b.add(last, y, **({"axis": 1} if last == "softmax" else {})) if last else y}))


def encoder(length: int | str = "tokens", names: tuple[str, ...] = ("input_ids", "attention_mask")) -> Model:
    """Return a network that gives each text of the vocabulary below three scores."""
    inputs = {name: ValueInfo(("batch", length), "int64") for name in names}
    b = GraphBuilder(inputs, {"batch": 2} | ({"tokens": 4} if length == "tokens" else {}))
    table = np.random.default_rng(1).standard_normal((10, 3)).astype(np.float32)
    x = b.add("embedding", names[0], params={"weight": table})
    for name in names[1:]:
        mask = b.add("reshape", b.add("cast", name, dtype="float32"), shape=("batch", length, 1))
        x = b.add("mul", x, mask)
    return Model(b.build({"scores": b.add("sum", x, axes=(1,))}))


def tokenizer(folder: Path, **more: Any) -> Path:
    """Write a tokenizer of words; what it does not know is 0."""
    tokenizers = pytest.importorskip("tokenizers")
    words = ("[UNK]", "the", "cat", "sat", "on", "mat", "[PAD]")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    for name, options in more.items():
        getattr(made, name)(**options)
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


# ---- images


@pytest.mark.parametrize(("width", "height"), [(640, 427), (300, 400), (256, 256), (257, 301), (100, 33)])
@pytest.mark.parametrize(("side", "crop"), [(256, 224), (232, 225), (64, 96)])
def test_images_are_those_of_torchvisions_steps(width: int, height: int, side: int, crop: int) -> None:
    image = Image.fromarray(PHOTOS[0]).resize((width, height))
    own = dataclasses.replace(IMAGENET, resize=side, crop=crop)
    np.testing.assert_array_equal(own.load(image)[0], torchvision_steps(image, side, crop))
    cubic = dataclasses.replace(own, interpolation="bicubic")
    wanted = torchvision_steps(image, side, crop, Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(cubic.load(image)[0], wanted)


def test_range_colours_and_layout() -> None:
    pixels = PHOTOS[1][:20, :30]
    raw = ImageInput(value_range=(0, 255), mean=(104, 117, 123), colors="BGR", layout="NHWC").load(pixels)
    np.testing.assert_array_equal(raw[0], pixels[..., ::-1] - np.float32([104, 117, 123]))
    signed = ImageInput(value_range=(-1, 1)).load(pixels)
    np.testing.assert_allclose(signed[0], pixels.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
    assert signed.dtype == np.float32 and signed.flags.c_contiguous
    grey = ImageInput(colors="L", mean=0.5, std=(0.5,)).load(pixels)
    wanted = np.asarray(Image.fromarray(pixels).convert("L"))[None] / np.float32(255)
    np.testing.assert_allclose(grey[0], (wanted - 0.5) / 0.5, atol=1e-6)
    model = pqnet.with_processing(
        classifier("H", "W", 3, dtype="uint8"), image=ImageInput(layout="NHWC", value_range=(0, 255))
    )
    np.testing.assert_array_equal(pqnet.prepare(model, images=[pixels])["image"][0], pixels)


def saved(image: Image.Image, name: str, **options: Any) -> str:
    image.save(name, **options)
    return name


def test_images_of_all_modes_are_the_same_picture() -> None:
    photo = Image.fromarray(PHOTOS[0]).resize((64, 48))
    plain, grey = ImageInput(), np.asarray(photo.convert("L"))
    wanted = plain.load(photo)

    def close(name: str, limit: float = 1e-6, to: np.ndarray = wanted) -> None:
        assert plain.load(name).shape == to.shape
        np.testing.assert_allclose(plain.load(name), to, atol=limit)

    close(saved(photo, "a.png"))
    close(saved(Image.merge("RGBA", (*photo.split(), Image.new("L", photo.size, 7))), "alpha.png"))
    close(saved(photo.convert("CMYK"), "cmyk.tif"), 0.01)
    of_grey = plain.load(photo.convert("L"))
    assert (of_grey[:, 0] == of_grey[:, 2]).all()
    close(saved(photo.convert("LA"), "la.png"), to=of_grey)
    close(saved(Image.fromarray(grey.astype(np.uint16) * 257), "deep.png"), to=of_grey)
    close(saved(Image.fromarray(grey.astype(np.int32) * 257), "deep.tif"), to=of_grey)
    palette = photo.quantize(32)
    close(saved(palette, "palette.png"), to=plain.load(palette.convert("RGB")))
    close(saved(palette, "clear.png", transparency=bytes(range(32))), to=plain.load(palette.convert("RGB")))
    turned = photo.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    close(saved(turned, "turned.png", exif=exif))
    close(saved(photo.convert("1"), "bits.png"), to=plain.load(photo.convert("1").convert("RGB")))
    assert (plain.load(Path("a.png").read_bytes()) == wanted).all() and (plain.load(np.asarray(photo)) == wanted).all()


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (
            lambda p: p.write_bytes(b"no image"),
            "that Pillow reads, got bad.png: no format that it knows",
        ),
        (lambda p: p.write_bytes(b""), "expected an image that Pillow reads"),
        (lambda p: None, "No such file"),
        (lambda p: p.mkdir(), "expected an image that Pillow reads"),
        (lambda p: p.write_bytes(_png()[:-40]), "expected an image that Pillow reads"),
        (lambda p: Image.fromarray(np.float32([[0.5]])).save(p, "TIFF"), "one of floating point; convert it to 8 bits"),
        (
            lambda p: Image.fromarray(np.int32([[70000]])).save(p, "TIFF"),
            "grey of up to 16 bits, got numbers from 7",
        ),
    ],
)
def test_bad_images(write: Any, match: str) -> None:
    write(Path("bad.png"))
    with pytest.raises(PQNetError, match=match):
        ImageInput(resize=8, crop=8).load("bad.png")


def _png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(PHOTOS[0]).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (np.zeros((4, 4, 3)), r"expected a uint8 array of shape \(height, width, 3\), got float64 array"),
        (np.zeros((4, 4, 4), np.uint8), "expected a uint8 array"),
        (np.zeros((0, 4, 3), np.uint8), "expected a uint8 array"),
        (7, "expected a path, bytes, an image of Pillow or a uint8 array, got int 7"),
        (np.zeros((1, 5000, 3), np.uint8), "whose longer is resized to 65536 at most"),
    ],
)
def test_what_is_no_image(image: Any, match: str) -> None:
    with pytest.raises(PQNetError, match=match):
        ImageInput(resize=64).load(image)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"resize": 0}, r"image resize: expected an integer in \[1, 65536\], got 0"),
        ({"resize": (1, 2, 3)}, "image resize: expected a side, or height and width"),
        ({"crop": 1.5}, "image crop: expected a side, or height and width, got float 1.5"),
        ({"crop": True}, "image crop: expected an integer"),
        ({"interpolation": "cubic"}, "image interpolation: expected one of 'nearest'.* got str 'cubic'"),
        ({"colors": "RGBA"}, "image colors: expected one of 'RGB'"),
        ({"layout": "HWC"}, "image layout: expected one of"),
        ({"mean": (1, 2)}, "image mean: expected a number or 3, finite, got tuple"),
        ({"mean": "x"}, "image mean: expected a number"),
        ({"std": (1, 0, 1)}, "image std: expected numbers other than 0"),
        ({"std": float("nan")}, "image std: expected a number or 3, finite"),
        ({"value_range": 1}, "image value_range: expected two numbers"),
        ({"value_range": (1, 1)}, "image value_range: expected two different numbers"),
        ({"value_range": (0, 1, 2)}, "image value_range: expected a number or 2"),
    ],
)
def test_bad_fields_of_images(fields: Any, match: str) -> None:
    with pytest.raises(PQNetError, match=match):
        ImageInput(**fields)


def test_plain_data_and_back() -> None:
    for image in (IMAGENET, ImageInput(), ImageInput((3, 4), 2, "box", "L", "NHWC", (-1, 1), 0.5, (2.0,))):
        assert ImageInput.from_dict(json.loads(json.dumps(image.to_dict()))) == image
    text = TextInput("a/tokenizer.json", 12, "<pad>")
    assert TextInput.from_dict(json.loads(json.dumps(text.to_dict()))) == text
    assert hash(text) != hash(TextInput("tokenizer.json"))


# ---- in the model


def test_processing_has_to_fit_the_network() -> None:
    model = classifier(3, 224, 224)
    for image, match in (
        (
            ImageInput(),
            r"image: input 'image': expected images of \(3, 224, 224\), as the network has, got \(3, any, any\)",
        ),
        (dataclasses.replace(IMAGENET, crop=200), r"got \(3, 200, 200\)"),
        (dataclasses.replace(IMAGENET, layout="NHWC"), "got .224, 224, 3. from ImageInput.*; set crop"),
        (ImageInput(resize=(224, 224), colors="L"), r"got \(1, 224, 224\)"),
    ):
        with pytest.raises(PQNetError, match=match):
            pqnet.with_processing(model, image=image)
    with pytest.raises(PQNetError, match="expected float32, or uint8 without mean, std and value_range"):
        pqnet.with_processing(classifier(3, 8, 8, dtype="uint8"), image=ImageInput(resize=(8, 8)))
    with pytest.raises(PQNetError, match="expected a network with one input of four axes, got inputs of input_ids"):
        pqnet.with_processing(encoder(), image=IMAGENET)
    with pytest.raises(
        PQNetError, match="labels: expected a name for each class of an output, got 3 for outputs scores"
    ):
        pqnet.with_processing(model, labels=["a", "b", "c"])
    with pytest.raises(PQNetError, match="labels: expected names, a str for each class, got str 'abcdefghij'"):
        pqnet.with_processing(model, labels="abcdefghij")
    with pytest.raises(PQNetError, match="labels: expected names"):
        pqnet.with_processing(model, labels=range(10))  # type: ignore[arg-type]
    with pytest.raises(PQNetError, match="text: expected integer inputs of .texts, tokens."):
        pqnet.with_processing(model, text=TextInput("tokenizer.json"))
    with pytest.raises(PQNetError, match="image: expected an ImageInput or None, got dict"):
        pqnet.with_processing(model, image={"resize": 3})  # type: ignore[arg-type]


def test_images_of_several_sizes_are_batches_of_their_own() -> None:
    model = pqnet.with_processing(classifier(3, "H", "W"), image=ImageInput())
    one = pqnet.prepare(model, images=[PHOTOS[0][:8, :9], PHOTOS[1][:8, :9]])
    assert isinstance(one, dict) and one["image"].shape == (2, 3, 8, 9)
    several = pqnet.prepare(model, images=[PHOTOS[0][:8, :9], PHOTOS[1][:9, :9]])
    assert [batch["image"].shape for batch in several] == [(1, 3, 8, 9), (1, 3, 9, 9)]
    for images, match in (([], "expected images or texts, got neither"), ("photo.jpg", "images: expected a list, got")):
        with pytest.raises(PQNetError, match=match):
            pqnet.prepare(model, images=images)
    with pytest.raises(PQNetError, match="texts: expected a model whose file has its TextInput.*--tokenizer of pqnet"):
        pqnet.prepare(model, texts=["a"])
    with pytest.raises(PQNetError, match="images: expected a model whose file has its ImageInput, got one without"):
        pqnet.prepare(classifier(3, "H", "W"), images=[PHOTOS[0]])


def test_it_survives_all_that_makes_models(tmp_path: Path) -> None:
    import pqnet.train

    images = load_images()[0][:64]
    model = pqnet.with_processing(pqnet.load(model_path()), image=DIGITS, labels=list("0123456789"))
    assert model.golden is not None
    want = Processing(image=DIGITS, labels=tuple("0123456789"))
    small = pqnet.quantize(model, "small-blocks", images, permute=True, activations="int8", progress=False)
    planned = pqnet.quantize(model, pqnet.plan(model, images[:16], "5x", progress=False), images[:16], progress=False)
    trained = pqnet.train.to_model(pqnet.train.to_module(small))
    for made in (model, small, planned, trained):
        made.save(tmp_path / "m.h5")
        assert Processing.of(pqnet.load(tmp_path / "m.h5")) == want
    other = pqnet.with_processing(small, labels=list("abcdefghij"))
    assert Processing.of(other) == dataclasses.replace(want, labels=tuple("abcdefghij"))


@pytest.mark.parametrize(
    ("meta", "match"),
    [
        ({"processing": {"image": {"size": 3}}}, "image: expected fields among resize, crop.*got 'size'"),
        ({"processing": {"image": 3}}, "image: expected a mapping"),
        ({"processing": {"audio": {}}}, "processing: expected a mapping with the keys image, text, labels"),
        ({"processing": {"text": {"max_length": 3}}}, "text: expected the field 'tokenizer'"),
        ({"processing": {"text": {"tokenizer": "../../secret"}}}, "in the folder of the model file or below it"),
        ({"processing": {"text": {"tokenizer": "/etc/passwd"}}}, "in the folder of the model file or below it"),
        ({"processing": [1]}, "processing: expected a mapping"),
        ({"processing": {"labels": [1, 2]}}, "labels: expected names"),
    ],
)
def test_forged_descriptions(meta: dict[str, Any], match: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = pqnet.load(model_path())
    forged = Model(dataclasses.replace(model.graph, meta=model.graph.meta | meta))
    forged.save("forged.h5")
    with pytest.raises(PQNetError, match=match):
        pqnet.prepare(forged, images=[PHOTOS[0]])
    assert main(["inspect", "forged.h5"]) == 2


# ---- labels


def test_likeliest_are_a_softmax_of_scores_and_shares_as_they_are() -> None:
    image = {"image": np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)}
    names = [f"class {i}" for i in range(10)]
    plain, soft, sig = (classifier(3, 4, 4, last=last) for last in (None, "softmax", "sigmoid"))
    scores = plain.run(image)["scores"].astype(np.float64)
    shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    for model, want in ((plain, shares), (soft, shares), (sig, 1 / (1 + np.exp(-scores)))):
        for row, best in zip(want, pqnet.likeliest(model, model.run(image)), strict=True):
            assert [name for name, _ in best] == [names[i] for i in np.argsort(-row)[:5]]
            np.testing.assert_allclose([share for _, share in best], np.sort(row)[::-1][:5], rtol=1e-5)
    assert len(pqnet.likeliest(plain, plain.run(image), n=100)[0]) == 10
    with pytest.raises(PQNetError, match=r"expected scores of shape \(samples, classes\), got y float32 \(2, 3, 4\)"):
        pqnet.likeliest(plain, {"y": np.zeros((2, 3, 4), np.float32)})


# ---- texts


def test_texts_become_numbers_masks_and_batches(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    texts = ["the cat sat", "the dog", "on the mat the cat sat"]
    model = pqnet.with_processing(encoder(), text=TextInput("tokenizer.json"))
    made = pqnet.prepare(model, texts=texts, folder=tmp_path)
    assert made["input_ids"].tolist() == [[1, 2, 3, 6, 6, 6], [1, 0, 6, 6, 6, 6], [4, 1, 5, 1, 2, 3]]
    assert made["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1] * 6]
    cut = pqnet.with_processing(encoder(), text=TextInput("tokenizer.json", max_length=2))
    assert pqnet.prepare(cut, texts=texts, folder=tmp_path)["input_ids"].tolist() == [[1, 2], [1, 0], [4, 1]]
    fixed = pqnet.with_processing(encoder(4), text=TextInput("tokenizer.json", pad="mat"))
    assert pqnet.prepare(fixed, texts=texts, folder=tmp_path)["input_ids"].tolist() == [
        [1, 2, 3, 5],
        [1, 0, 5, 5],
        [4, 1, 5, 1],
    ]
    alone = pqnet.with_processing(encoder(names=("ids",)), text=TextInput("tokenizer.json"))
    several = pqnet.prepare(alone, texts=texts, folder=tmp_path)
    assert [batch["ids"].tolist() for batch in several] == [[[1, 2, 3]], [[1, 0]], [[4, 1, 5, 1, 2, 3]]]
    tokenizer(
        tmp_path,
        enable_truncation={"max_length": 3},
        enable_padding={"direction": "left", "pad_id": 2, "pad_token": "cat"},
    )
    stored = pqnet.prepare(model, texts=texts, folder=tmp_path)
    assert stored["input_ids"].tolist() == [[1, 2, 3], [2, 1, 0], [4, 1, 5]]


def test_bad_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer(tmp_path)
    model = pqnet.with_processing(encoder(), text=TextInput("tokenizer.json"))
    for texts, match in (
        (["", "cat"], "texts: expected at least one token in each, got a text without any"),
        ([1], "texts: expected a list of str"),
        ("cat", "texts: expected a list, got str 'cat'"),
    ):
        with pytest.raises(PQNetError, match=match):
            pqnet.prepare(model, texts=texts, folder=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(PQNetError, match=r"text: expected a tokenizer .*no such file; put it beside the model file"):
        pqnet.prepare(model, texts=["cat"], folder=tmp_path / "other")
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(PQNetError, match=r"text: expected a tokenizer.json that tokenizers reads"):
        pqnet.prepare(model, texts=["cat"], folder=tmp_path)
    tokenizer(tmp_path)
    lost = pqnet.with_processing(encoder(), text=TextInput("tokenizer.json", pad="<none>"))
    with pytest.raises(PQNetError, match="text pad: expected a token of the tokenizer, got '<none>'; name it"):
        pqnet.prepare(lost, texts=["cat", "the cat"], folder=tmp_path)
    with pytest.raises(PQNetError, match="called input_ids, attention_mask, token_type_ids, got inputs a int64"):
        pqnet.with_processing(encoder(names=("a", "b")), text=TextInput("tokenizer.json"))
    _without(monkeypatch, "tokenizers")
    with pytest.raises(PQNetError, match=r"needs the package tokenizers; pip install 'pqnet\[text\]'"):
        pqnet.prepare(model, texts=["cat"], folder=tmp_path)


def _without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    whole = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return whole(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)


def test_missing_pillow_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, "PIL")
    with pytest.raises(PQNetError, match=r"image: needs the package Pillow; pip install 'pqnet\[image\]'"):
        IMAGENET.load(PHOTOS[0])


# ---- files that people have


def test_preprocessor_config_of_hugging_face_gives_its_images() -> None:
    from transformers import (
        BitImageProcessorPil,
        CLIPImageProcessorPil,
        ConvNextImageProcessorPil,
        ViTImageProcessorPil,
    )

    photo = Image.fromarray(PHOTOS[0]).crop((0, 0, 500, 300))
    processors = (
        ViTImageProcessorPil(),
        CLIPImageProcessorPil(),
        BitImageProcessorPil(size={"shortest_edge": 100}, crop_size={"height": 90, "width": 80}),
        ConvNextImageProcessorPil(size={"shortest_edge": 224}, crop_pct=0.875),
        ConvNextImageProcessorPil(size={"shortest_edge": 384}),
        ViTImageProcessorPil(size={"height": 64, "width": 96}, resample=3, do_normalize=False),
        ViTImageProcessorPil(do_rescale=False, image_mean=[100, 110, 120], image_std=[50, 60, 70]),
    )
    for processor in processors:
        processor.save_pretrained(".")
        image = read_processing(".").image
        assert image is not None
        wanted = np.asarray(processor(photo, return_tensors="np")["pixel_values"])
        np.testing.assert_allclose(image.load(photo), wanted, atol=2e-5 * np.abs(wanted).max(), err_msg=repr(processor))


def written(name: str, data: Any) -> str:
    Path(name).write_text(data if isinstance(data, str) else json.dumps(data), "utf-8")
    return name


def test_configs_of_timm_yaml_and_labels() -> None:
    cfg = {"input_size": [3, 288, 288], "interpolation": "bicubic", "crop_pct": 0.95, "mean": MEAN, "std": STD}
    want = ImageInput(303, (288, 288), "bicubic", mean=MEAN, std=STD)
    assert read_processing(written("config.json", {"architecture": "x", "pretrained_cfg": cfg})).image == want
    assert read_processing(".").image == want
    squash = read_processing(written("b.json", cfg | {"crop_mode": "squash", "crop_pct": 1.0})).image
    assert squash == dataclasses.replace(want, resize=(288, 288))
    text = "image: {resize: 256, crop: [224, 224], mean: [1, 2, 3]}\ntext: {tokenizer: t.json}\nlabels: [a, b]\n"
    found = read_processing(written("a.yaml", text))
    assert found == Processing(ImageInput(256, (224, 224), mean=(1, 2, 3)), TextInput("t.json"), ("a", "b"))
    assert read_processing("imagenet").image == IMAGENET
    assert read_labels(written("l.txt", "tench\ngreat white shark \r\n\n")) == ("tench", "great white shark")
    assert read_labels(written("l.json", {"id2label": {"1": "b", "0": "a"}})) == ("a", "b")
    assert read_labels(written("l.json", ["a", "b"])) == ("a", "b")


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("a.yaml", "image: [", "expected YAML, got text that does not parse"),
        ("a.yaml", "image: {crop: big}", "image crop: expected a side"),
        ("a.yaml", "resize: 3", "expected a mapping with the keys image, text, labels"),
        ("a.yaml", "", "expected a mapping with the keys"),
        ("a.yaml", "image: !!python/object/apply:os.system [ls]", "expected YAML"),
        ("a.json", "{", "expected JSON"),
        ("a.json", [1], "JSON: expected an object"),
        ("a.json", {"hidden_size": 3}, "JSON: expected image_mean, or input_size, mean and std, got"),
        ("a.json", {"image_mean": [0.5], "do_pad": True}, "do_pad have no counterpart in ImageInput"),
        ("a.json", {"image_mean": MEAN, "image_std": STD, "resample": 99}, "got fields that are none: IndexError"),
        (
            "a.json",
            {"image_mean": MEAN, "image_std": STD, "size": {"longest_edge": 9}},
            "size: expected height and width",
        ),
        ("a.json", {"input_size": 3, "mean": MEAN, "std": STD}, "got fields that are none: TypeError"),
        (
            "a.json",
            {"input_size": [3, 8, 8], "mean": MEAN, "std": STD, "crop_mode": "border"},
            "crop_mode: expected center",
        ),
        ("none.yaml", None, "expected a readable text file, got none.yaml"),
    ],
)
def test_bad_files_of_processing(name: str, data: Any, match: str) -> None:
    if data is not None:
        written(name, data)
    with pytest.raises(PQNetError, match=f"preprocess: {name}: .*{match}"):
        read_processing(name)


def test_bad_labels_and_folders(tmp_path: Path) -> None:
    with pytest.raises(PQNetError, match=r"preprocess: expected a folder with preprocessor_config.json or config.json"):
        read_processing(tmp_path)
    for data, match in (
        ({"id2label": {"0": "a", "2": "b"}}, "every number of a class, from 0 on"),
        ({"a": 3}, "names by the numbers of classes"),
        ([1], "labels: expected a list of names"),
    ):
        with pytest.raises(PQNetError, match=match):
            read_labels(written("l.json", data))


# ---- the command line


def test_run_prints_the_five_likeliest_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = load_images()[1]
    model = pqnet.with_processing(
        pqnet.load(model_path()),
        image=dataclasses.replace(DIGITS, value_range=(0, 1)),
        labels=[f"digit {i}" for i in range(10)],
    )
    model.save("m.h5")
    scale = 255 / np.abs(images).max()
    Image.fromarray(np.uint8(np.clip(images[0, 0] * scale, 0, 255))).resize((64, 64), 0).save("photo.png")
    assert main(["run", "m.h5", "--image", "photo.png"]) == 0
    lines = capsys.readouterr().out.splitlines()
    prepared = pqnet.prepare(model, images=["photo.png"])
    want = pqnet.likeliest(model, model.run(prepared))[0]
    assert lines == [f"{share:>8.2%}  {name}" for name, share in want] and len(lines) == 5
    assert main(["run", "m.h5", "--image", "photo.png", "--image", "photo.png"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == ["photo.png:", *lines] * 2
    assert main(["run", "m.h5", "--image", "photo.png", "-o", "y.npy"]) == 0
    np.testing.assert_array_equal(np.load("y.npy"), model.run(prepared)["logits"])
    assert main(["inspect", "m.h5"]) == 0
    assert (
        "image: ImageInput(resize=(8, 8)" in (out := capsys.readouterr().out) and "labels: 10 names of classes" in out
    )


TOY = """
import torch
from torch import nn

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(7, 3)

    def forward(self, input_ids, attention_mask):
        return (self.table(input_ids) * attention_mask[..., None]).sum(1)
"""


def test_convert_with_a_tokenizer_and_labels_then_run_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    Path("toywords.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    tokenizer(Path.cwd())
    written("names.txt", "animal\nfurniture\nother\n")
    inputs = ["--input", "input_ids=BxT:int64", "--input", "attention_mask=BxT:int64"]
    line = ["convert", "torch", "toywords:Words", *inputs, "-o", "m.h5"]
    assert main([*line, "--tokenizer", "tokenizer.json", "--labels", "names.txt"]) == 0
    capsys.readouterr()
    assert main(["run", "m.h5", "--text", "the cat", "--text", "on the mat"]) == 0
    model = pqnet.load("m.h5")
    alone = [pqnet.likeliest(model, model.run(pqnet.prepare(model, texts=[t])))[0] for t in ("the cat", "on the mat")]
    want = [
        [f"{text}:", *(f"{p:>8.2%}  {n}" for n, p in best)]
        for text, best in zip(("the cat", "on the mat"), alone, strict=True)
    ]
    assert capsys.readouterr().out.splitlines() == [line for lines in want for line in lines]
    Path("sub").mkdir()
    for bad, match in (
        (["--tokenizer", "nothing.json"], "--tokenizer: expected a file in"),
        (["--labels", "nothing.txt"], "expected a readable text file, got nothing.txt"),
        (["--preprocess", "imagenet"], "expected a network with one input of four axes"),
    ):
        assert main([*line, *bad]) == 2
        assert match in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("run {m}", "run: expected --input, or --image and --text, got none"),
        ("run {m} --input x.npy --image a.png", "got both"),
        ("run {m} --image a.png", "images: expected a model whose file has its ImageInput, got one without; set it by"),
    ],
)
def test_bad_command_lines(line: str, match: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.format(m=model_path()).split()) == 2
    assert match in capsys.readouterr().err
