"""`Decoder`: text token by token, with the keys and values of earlier tokens kept."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from pqnet import _check
from pqnet._threads import default_threads
from pqnet.errors import PQNetError
from pqnet.graph.indices import index_limits
from pqnet.runtime.model import Model

__all__ = ["Decoder"]

NEEDED = ("input_ids", "attention_mask", "past_mask")
LOGITS = ("last", "all")


def _capacity(length: int) -> int:
    """Return for how many earlier tokens a program is made: 1, 16, 24, 32, 48, 64, 96, ..."""
    if length <= 1:
        return 1
    power = max(16, 1 << (length - 1).bit_length())
    return power * 3 // 4 if 16 < length <= power * 3 // 4 else power


class Decoder:
    """A text that is read and continued: one of a batch of texts, or several.

    Keys and values of all tokens so far are kept, so that a token costs one pass over it alone. There are few programs:
    each is made for a number of earlier tokens that grows by half or a third, of which those that are not there yet
    are masked.

    Parameters
    ----------
    model : Model
        Of a decoder that was converted with its cache (`pqnet_converters.from_transformers`), float or packed. Any
        number of texts may share it, from any threads.
    threads : int, optional
        Cores to use; default all. The results do not depend on it.

    Attributes
    ----------
    length : int
        Tokens read so far, padding included.
    limit : int or None
        Tokens that the network has positions for; None if it does not say.

    Examples
    --------
    >>> import pqnet
    >>> decoder = pqnet.Decoder(pqnet.load("gpt2.h5"))  # doctest: +SKIP
    >>> decoder.generate(tokenizer("Once upon a")["input_ids"], 20)  # doctest: +SKIP
    >>> logits = pqnet.Decoder(model).prefill([[5, 7, 11]])  # doctest: +SKIP
    """

    def __init__(self, model: Model, *, threads: int | None = None) -> None:
        inputs = model.graph.inputs if isinstance(model, Model) else {}
        self._layers = {name: info.shape for name, info in inputs.items() if name.startswith("past.")}
        if not self._layers or not inputs.keys() >= set(NEEDED):
            raise _check.error(
                "model",
                f"a decoder with a cache, whose inputs are {', '.join(NEEDED)}, past.0.key and so on",
                list(inputs) if inputs else _check.describe(model),
                "pqnet_converters.from_transformers makes one",
            )
        self.model = model
        self.length = 0
        self._threads = default_threads(threads)
        infos = model.graph.infer_shapes(model.graph.symbols)
        self.limit = index_limits(model.graph, infos).get("position_ids")
        self._mask = np.zeros((0, 0), np.int64)
        self._past: dict[str, np.ndarray] = {}
        self._room = self._end = 0  # earlier tokens that programs see; where the next token is put

    def prefill(self, ids: Any, mask: Any = None, *, logits: str = "last") -> np.ndarray:
        """Read tokens, after those that were read before.

        Parameters
        ----------
        ids : integer array, shape (batch, tokens) or (tokens,)
        mask : array, shape (batch, tokens), optional
            0 where a text is padded, which has to be on the left.
        logits : {"last", "all"}
            Of which tokens to return the logits.

        Returns
        -------
        float32 ndarray
            Shape (batch, vocabulary), for "all" (batch, tokens, vocabulary).
        """
        _check.choice(logits, "logits", LOGITS)
        given = self.inputs(ids, mask, logits=logits)
        found = self._run(given)
        return found if logits == "all" else np.ascontiguousarray(found[:, -1])

    def step(self, ids: Any) -> np.ndarray:
        """Read one token of each text and return its logits, (batch, vocabulary); ``ids`` has shape (batch,)."""
        ids = _check.int_array(ids, "ids")
        if ids.ndim != 1:
            raise _check.error("ids", "one token for each text, shape (batch,)", _check.describe(ids), "use prefill")
        return self.prefill(ids[:, None])

    def generate(
        self, ids: Any, max_new_tokens: int, *, mask: Any = None, stop: int | Iterable[int] | None = None
    ) -> np.ndarray:
        """Read tokens and continue them, each time by the token that is most likely.

        Parameters
        ----------
        ids : integer array, shape (batch, tokens) or (tokens,)
        max_new_tokens : int
        mask : array, shape (batch, tokens), optional
            0 where a text is padded, which has to be on the left.
        stop : int or iterable of int, optional
            Tokens after which a text is at its end, padded from there on; by default what the file says, none by
            ``()``. When all are, nothing more is added.

        Returns
        -------
        int64 ndarray, shape (batch, tokens + new ones)
        """
        wanted = _check.integer(max_new_tokens, "max_new_tokens", 1)
        ends = self.model.graph.meta.get("decoder", {})
        stops = ends.get("stop", []) if stop is None else [stop] if isinstance(stop, int) else list(stop)
        pad = ends.get("pad", 0)
        out = [self._ids(ids)]
        done = np.zeros(len(out[0]), bool)
        found = self.prefill(ids, mask)
        while True:
            token = np.where(done, pad, found.argmax(-1))
            out.append(token[:, None])
            done |= np.isin(token, stops)
            if done.all() or len(out) > wanted:
                return np.concatenate(out, 1)
            found = self.step(token)

    def inputs(self, ids: Any, mask: Any = None, *, logits: str = "all") -> dict[str, np.ndarray]:
        """Return what the network reads to go on with these tokens, by the names of its inputs.

        Before anything was read, these are inputs for `Model.run`, `pqnet.calibrate` and `pqnet.quantize`.

        Parameters
        ----------
        ids : integer array, shape (batch, tokens) or (tokens,)
        mask : array, shape (batch, tokens), optional
        logits : {"all", "last"}

        Returns
        -------
        dict of str to ndarray
        """
        ids = self._ids(ids)
        seen = np.ones(ids.shape, np.int64) if mask is None else np.atleast_2d(_check.int_array(mask, "mask"))
        if seen.shape != ids.shape or not np.isin(seen, (0, 1)).all():
            raise _check.error("mask", f"zeros and ones of shape {ids.shape}", _check.describe(seen))
        if not self._past:
            self._grow(1, len(ids))
        before = slice(self._end - self._room, self._end)
        places = self._mask[:, : self._end].sum(1, keepdims=True) + seen.cumsum(1) - 1
        if self.limit is not None and places.max() >= self.limit:
            raise PQNetError(
                f"ids: expected at most {self.limit} tokens in a text, for which the network has positions, "
                f"got {places.max() + 1}; begin again with a new Decoder and the last tokens of the text"
            )
        tokens = ids.shape[1]
        known = {
            "input_ids": ids,
            "attention_mask": seen,
            "past_mask": self._mask[:, before],
            "position_ids": np.maximum(places, 0),
            "logits_to_keep": np.tile(np.arange(0 if logits == "all" else tokens - 1, tokens), (len(ids), 1)),
            **{name: array[:, :, before] for name, array in self._past.items()},
        }
        return {name: known[name] for name in self.model.graph.inputs}

    def _ids(self, ids: Any) -> np.ndarray:
        array: np.ndarray = np.atleast_2d(_check.int_array(ids, "ids"))
        if array.ndim != 2 or not array.size:
            raise _check.error("ids", "tokens of shape (batch, tokens)", _check.describe(array))
        if self._past and len(array) != len(self._mask):
            raise _check.error("ids", f"{len(self._mask)} texts, as before", len(array), "make a new Decoder")
        return array

    def _run(self, given: dict[str, np.ndarray]) -> np.ndarray:
        """Run the network, keep the new keys and values, and return the logits."""
        found: dict[str, np.ndarray] = self.model._engine.run(given, self._threads)
        tokens = given["input_ids"].shape[1]
        if self._room < self.length + tokens:
            self._grow(self.length + tokens, len(self._mask))
        place = slice(self._end, self._end + tokens)
        self._mask[:, place] = given["attention_mask"]
        for name, array in self._past.items():
            array[:, :, place] = found[name.replace("past.", "new.", 1)]
        self._end += tokens
        self.length += tokens
        return found["logits"]

    def _grow(self, length: int, batch: int) -> None:
        """Make room for so many tokens: programs see the last ``_room`` of twice as many places."""
        old, first = slice(self._end - self.length, self._end), _capacity(length)
        place = slice(first - self.length, first)
        mask = np.zeros((batch, 2 * first), np.int64)
        if self.length:
            mask[:, place] = self._mask[:, old]
        for name, (_, heads, _, features) in self._layers.items():
            array = np.zeros((batch, int(heads), 2 * first, int(features)), np.float32)
            if self.length:
                array[:, :, place] = self._past[name][:, :, old]
            self._past[name] = array
        self._mask, self._room, self._end = mask, first, first
