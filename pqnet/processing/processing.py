"""What a model file says about the images, texts and labels of its network, and functions that follow it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pqnet import _check
from pqnet.errors import PQNetError
from pqnet.graph import Graph
from pqnet.graph.symbols import output_signature
from pqnet.processing.image import ImageInput
from pqnet.processing.text import TextInput
from pqnet.runtime import Model

__all__ = ["Processing", "likeliest", "prepare", "with_processing"]

SHAPES_ONLY = ("cast", "permute", "reshape", "slice")  # operations behind which probabilities remain what they are
PROCESSING = "processing"  # key of Graph.meta


@dataclass(frozen=True)
class Processing:
    """Images, texts and labels of a network, as the ``meta`` of its graph holds them; None where it says nothing."""

    image: ImageInput | None = None
    text: TextInput | None = None
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, kind in (("image", ImageInput), ("text", TextInput)):
            if not isinstance(getattr(self, name), kind | None):
                raise _check.error(name, f"an {kind.__name__} or None", _check.describe(getattr(self, name)))
        if self.labels is not None:
            labels = self.labels
            if (
                isinstance(labels, str)
                or not isinstance(labels, Sequence)
                or not all(isinstance(x, str) for x in labels)
            ):
                raise _check.error("labels", "names, a str for each class", _check.describe(labels))
            object.__setattr__(self, "labels", tuple(labels))

    @classmethod
    def from_dict(cls, data: Any) -> "Processing":
        """Return what plain data with the keys image, text and labels say, or raise PQNetError."""
        if not isinstance(data, Mapping) or set(data) - {"image", "text", "labels"}:
            raise _check.error(PROCESSING, "a mapping with the keys image, text, labels", _check.describe(data))
        image = ImageInput.from_dict(data["image"]) if "image" in data else None
        text = TextInput.from_dict(data["text"]) if "text" in data else None
        return cls(image, text, data.get("labels"))

    @classmethod
    def of(cls, model: Model) -> "Processing":
        """Return what a model says, or raise PQNetError if that is nothing which pqnet writes."""
        return cls.from_dict(model.graph.meta.get(PROCESSING, {}))

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        parts = {"image": self.image, "text": self.text}
        found: dict[str, Any] = {name: part.to_dict() for name, part in parts.items() if part is not None}
        return found | ({} if self.labels is None else {"labels": list(self.labels)})

    def check(self, graph: Graph) -> None:
        """Raise PQNetError if it does not fit a network."""
        if self.image is not None:
            self.image.input_of(graph)
        if self.text is not None:
            self.text.inputs_of(graph)
        if self.labels is not None:
            shapes = {name: shape for name, (shape, _) in output_signature(graph).items()}
            if not any(shape[-1:] == (len(self.labels),) for shape in shapes.values()):
                got = f"{len(self.labels)} for outputs " + ", ".join(f"{n} {s}" for n, s in shapes.items())
                raise _check.error("labels", "a name for each class of an output", got)


def with_processing(
    model: Model,
    *,
    image: ImageInput | None = None,
    text: TextInput | None = None,
    labels: Sequence[str] | None = None,
) -> Model:
    """Return a model whose file says how images or texts become its inputs, and what its classes are called.

    Parameters
    ----------
    model : Model
    image, text : ImageInput, TextInput, optional
        What is not given stays as it was.
    labels : sequence of str, optional
        A name for each class, in order.

    Returns
    -------
    Model
        Saving, quantization and training keep all of it.

    Raises
    ------
    PQNetError
        An image of another size than the network's, a wrong number of labels, and so on.

    Examples
    --------
    >>> import numpy as np, pqnet
    >>> from pqnet.demo import model_path
    >>> digits = pqnet.ImageInput(resize=(8, 8), colors="L")
    >>> model = pqnet.with_processing(pqnet.load(model_path()), image=digits, labels=list("0123456789"))
    >>> inputs = pqnet.prepare(model, images=[np.zeros((20, 30, 3), np.uint8)])
    >>> inputs["input"].shape
    (1, 1, 8, 8)
    >>> len(pqnet.likeliest(model, model.run(inputs))[0])
    5
    """
    given: dict[str, Any] = {"image": image, "text": text, "labels": labels}
    processing = replace(Processing.of(model), **{name: v for name, v in given.items() if v is not None})
    processing.check(model.graph)
    meta = model.graph.meta | {PROCESSING: processing.to_dict()}
    return Model(replace(model.graph, meta=meta), model.golden, model.compute)


def prepare(
    model: Model, *, images: Iterable[Any] = (), texts: Iterable[str] = (), folder: str | Path = "."
) -> dict[str, np.ndarray] | list[dict[str, np.ndarray]]:
    """Return images, texts or pairs of both as the inputs of a model, as its file says.

    Parameters
    ----------
    model : Model
        With `ImageInput` or `TextInput`, see `with_processing`.
    images : iterable of path, bytes, PIL.Image.Image or uint8 array (height, width, 3)
    texts : iterable of str
    folder : str or Path
        Where the model file lies, and its tokenizer.

    Returns
    -------
    dict of str to ndarray, or list of such
        A batch; a list of batches where images or texts have different sizes.

    Raises
    ------
    PQNetError
        What cannot be read, and a model whose file does not say how.
    """
    processing, graph = Processing.of(model), model.graph
    images, texts = _listed(images, "images"), _listed(texts, "texts")
    of_images: list[dict[str, np.ndarray]] = []
    of_texts: list[dict[str, np.ndarray]] = []
    if images:
        if processing.image is None:
            raise _missing("images", "ImageInput", "--preprocess")
        name = processing.image.input_of(graph)
        loaded = [processing.image.load(image, graph.inputs[name]) for image in images]
        alike = len({array.shape for array in loaded}) == 1
        of_images = [{name: np.concatenate(loaded)}] if alike else [{name: array} for array in loaded]
    if texts:
        if processing.text is None:
            raise _missing("texts", "TextInput", "--tokenizer")
        of_texts = processing.text.load(texts, graph, folder)
    if not (images or texts):
        raise _check.error("inputs", "images or texts", "neither")
    if images and texts and len(of_images) == len(of_texts) == 1:
        return of_images[0] | of_texts[0]
    if images and texts:
        got = f"images of {len(of_images)} sizes and texts of {len(of_texts)} lengths"
        raise _check.error("inputs", "one batch of images and one of texts", got, "give them one by one")
    batches = of_images or of_texts
    return batches[0] if len(batches) == 1 else batches


def likeliest(model: Model, outputs: Mapping[str, np.ndarray], n: int = 5) -> list[list[tuple[str, float]]]:
    """Return the most likely classes of each sample.

    Parameters
    ----------
    model : Model
    outputs : dict of str to ndarray
        What ``model.run`` gave. Of class scores of shape (samples, classes): with labels, the first with as many
        classes. They become probabilities by a softmax, unless a softmax or sigmoid is the network's last operation.
    n : int
        How many.

    Returns
    -------
    list of list of (str, float)
        For each sample labels and probabilities, the largest first; numbers of classes where the file names none.

    Raises
    ------
    PQNetError
        A network without class scores.
    """
    labels, n = Processing.of(model).labels, _check.integer(n, "n", 1)
    of_classes = {
        name: y
        for name, y in outputs.items()
        if y.ndim == 2 and y.dtype.kind == "f" and y.shape[1] > 1 and (labels is None or y.shape[1] == len(labels))
    }
    if not of_classes:
        got = ", ".join(f"{name} {y.dtype} {y.shape}" for name, y in outputs.items())
        raise _check.error("outputs", "scores of shape (samples, classes)", got, "write outputs to a file instead")
    name, scores = next(iter(of_classes.items()))
    shares = np.asarray(scores, np.float64)
    if not _are_probabilities(model.graph, model.graph.outputs[name]):
        shares = np.exp(shares - shares.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
    order = np.argsort(-shares, axis=1, kind="stable")[:, :n]
    names = labels or [f"class {i}" for i in range(scores.shape[1])]
    return [[(names[i], float(row[i])) for i in best] for row, best in zip(shares, order, strict=True)]


def _are_probabilities(graph: Graph, value: str) -> bool:
    """Tell whether a softmax or sigmoid made a value, but for its shape."""
    producer = {v: node for node in graph.nodes for v in node.outputs}
    while value in producer and producer[value].op in SHAPES_ONLY:
        value = producer[value].inputs[0]
    return value in producer and producer[value].op in ("softmax", "sigmoid")


def _listed(given: Iterable[Any], name: str) -> list[Any]:
    if isinstance(given, str | bytes | Path | Mapping) or not isinstance(given, Iterable):
        raise _check.error(name, "a list", _check.describe(given))
    return list(given)


def _missing(what: str, kind: str, flag: str) -> PQNetError:
    remedy = f"set it by pqnet.with_processing, or {flag} of pqnet convert"
    return _check.error(what, f"a model whose file has its {kind}", "one without", remedy)
