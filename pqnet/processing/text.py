"""`TextInput`: how texts become the inputs of a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pqnet import _check
from pqnet.errors import PQNetError
from pqnet.graph import Graph
from pqnet.processing.fields import from_plain, to_plain

__all__ = ["TextInput"]

# Name of an input -> the attribute of an encoding that it takes.
READS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
PADS = ("[PAD]", "<pad>", "<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")
LENGTHS = 1 << 20


@dataclass(frozen=True)
class TextInput:
    """How texts become the inputs of a network: by a ``tokenizer.json`` that lies beside the model file.

    Inputs are known by the names ``input_ids``, ``attention_mask`` and ``token_type_ids``; a network with one input of
    token numbers may call it anything.

    Parameters
    ----------
    tokenizer : str
        Path of the tokenizer's file, relative to the folder of the model file and not above it.
    max_length : int, optional
        Tokens after which texts are cut; default what the tokenizer's file says, and the length that an input has.
    pad : str, optional
        Token that fills up shorter texts; default what the tokenizer's file says, else one of the usual names.

    Raises
    ------
    PQNetError
        A field that is none of these.

    Examples
    --------
    >>> from pqnet import TextInput
    >>> TextInput("roberta/tokenizer.json", max_length=512).to_dict()
    {'tokenizer': 'roberta/tokenizer.json', 'max_length': 512}
    """

    tokenizer: str
    max_length: int | None = None
    pad: str | None = None

    def __post_init__(self) -> None:
        path = PurePosixPath(self.tokenizer) if isinstance(self.tokenizer, str) else None
        if path is None or not path.name or path.is_absolute() or ".." in path.parts or "\\" in self.tokenizer:
            expected = "a path, with slashes, in the folder of the model file or below it"
            raise _check.error("text tokenizer", expected, _check.describe(self.tokenizer))
        if self.max_length is not None:
            _check.integer(self.max_length, "text max_length", 1, LENGTHS)
        if not isinstance(self.pad, str | None):
            raise _check.error("text pad", "the name of a token", _check.describe(self.pad))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are not as by default, as plain data."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, data: Any) -> "TextInput":
        """Rebuild from `to_dict`, or raise PQNetError."""
        return from_plain(cls, data, "text")

    def inputs_of(self, graph: Graph) -> dict[str, str]:
        """Return what each input of texts takes of an encoding, or raise PQNetError."""
        of_texts = [name for name, info in graph.inputs.items() if len(info.shape) == 2 and info.dtype != "float32"]
        if len(of_texts) == 1:
            return {of_texts[0]: READS.get(of_texts[0], "ids")}
        if not of_texts or set(of_texts) - set(READS):
            got = ", ".join(f"{name} {info.dtype} {info.shape}" for name, info in graph.inputs.items())
            raise _check.error("text", f"integer inputs of (texts, tokens) called {', '.join(READS)}", f"inputs {got}")
        return {name: READS[name] for name in of_texts}

    def load(self, texts: Sequence[str], graph: Graph, folder: str | Path = ".") -> list[dict[str, np.ndarray]]:
        """Return texts as a network takes them.

        Parameters
        ----------
        texts : sequence of str
        graph : Graph
            Of the network.
        folder : str or Path
            Where the model file lies.

        Returns
        -------
        list of dict of str to ndarray
            One batch, shorter texts filled up and masked; without an input for the mask, a batch for each length.

        Raises
        ------
        PQNetError
            No tokenizer, a damaged one, one without a token to fill up with; without the package tokenizers.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise _check.error("texts", "a list of str", _check.describe(texts))
        reads = self.inputs_of(graph)
        tokenizer = self._tokenizer(Path(folder, self.tokenizer))
        fixed = {dim for name in reads for dim in graph.inputs[name].shape[1:] if isinstance(dim, int)}
        limits = [self.max_length, (tokenizer.truncation or {}).get("max_length"), *fixed]
        if longest := min((limit for limit in limits if limit is not None), default=None):
            tokenizer.enable_truncation(longest)
        pad = tokenizer.padding or {}
        tokenizer.no_padding()
        encoded = tokenizer.encode_batch(list(texts))
        lengths = {len(each.ids) for each in encoded}
        if 0 in lengths:
            raise _check.error("texts", "at least one token in each", "a text without any")
        masked = "attention_mask" in reads.values()
        if fixed - lengths or (len(lengths) > 1 and (fixed or masked)):
            for each in encoded:
                each.pad(max(fixed or lengths), **self._pad(tokenizer, pad))
            masked = True
        batches = [encoded] if masked or len(lengths) == 1 else [[each] for each in encoded]
        return [
            {
                name: np.array([getattr(e, what) for e in batch], graph.inputs[name].dtype)
                for name, what in reads.items()
            }
            for batch in batches
        ]

    def _tokenizer(self, path: Path) -> Any:
        try:
            import tokenizers
        except ModuleNotFoundError:
            raise PQNetError("text: needs the package tokenizers; pip install 'pqnet[text]'") from None
        if not path.is_file():
            raise _check.error("text", f"a tokenizer {path}", "no such file", "put it beside the model file")
        try:
            return tokenizers.Tokenizer.from_file(str(path))
        except Exception as reason:  # the package raises nothing more special
            raise PQNetError(f"text: expected a tokenizer.json that tokenizers reads, got {path}: {reason}") from None

    def _pad(self, tokenizer: Any, stored: dict[str, Any]) -> dict[str, Any]:
        """Return side, number and name of the token that fills up."""
        token = (
            self.pad or stored.get("pad_token") or next((p for p in PADS if tokenizer.token_to_id(p) is not None), "")
        )
        number = tokenizer.token_to_id(token)
        if number is None:
            raise _check.error("text pad", "a token of the tokenizer", repr(token), "name it: TextInput(pad=...)")
        return {"direction": stored.get("direction", "right"), "pad_id": number, "pad_token": token}
