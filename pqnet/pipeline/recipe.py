"""Which codec for which layer: recipes by name pattern."""

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pqnet import _check
from pqnet._html import table
from pqnet.codecs import Codec, codec_from_attrs
from pqnet.errors import ConfigError, FormatError, PQNetError, did_you_mean
from pqnet.graph import Graph
from pqnet.pipeline.adapt import adaptation_table, adapted, fits
from pqnet.pipeline.presets import PRESETS, first_conv

__all__ = ["Recipe", "choose_by_name", "resolve_recipe"]

X = TypeVar("X")
MAX_TEXT = 1 << 20  # characters of YAML: a recipe names ten thousand layers in as many
MAX_NODES = 100_000
MOSTLY = 0.5  # share of a network's weights below which it is hardly quantized


@dataclass(frozen=True)
class Recipe:
    """A codec for every layer, by name pattern.

    Parameters
    ----------
    layers : dict of str to Codec or None
        Keys are layer names or globs (``*``, ``?``, ``[..]``); of several that match a layer the longest wins, and a
        whole name over a glob of its length; None keeps the layer in float. ``"default"`` is for layers that no other
        key matches, but for the first convolution, which then stays float as in the papers; without it they stay float.
        Where it does not fit a layer it is adapted, with a warning that lists what such layers have: the nearest
        divisor for d, the other layout, a smaller K, float for the smallest. Codecs of other keys have to fit.

    Examples
    --------
    >>> from pqnet import PQ, Recipe
    >>> recipe = Recipe({"default": PQ(k=256, d=8), "fc": None})
    >>> Recipe.from_yaml(recipe.to_yaml()) == recipe
    True
    """

    layers: Mapping[str, Codec | None]

    def __post_init__(self) -> None:
        if not isinstance(self.layers, Mapping):
            raise ConfigError(str(_check.error("recipe", "a dict of patterns", _check.describe(self.layers))))
        for pattern, codec in self.layers.items():
            if not isinstance(pattern, str) or not (codec is None or isinstance(codec, Codec)):
                raise ConfigError(
                    f"recipe: expected name patterns with a codec or None, got {pattern!r}: {_check.describe(codec)}"
                )
        object.__setattr__(self, "layers", dict(self.layers))

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        rows = [[name, "float" if codec is None else str(codec)] for name, codec in self.layers.items()]
        return table("Recipe", ["layers", "codec"], rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain data."""
        return {pattern: codec and codec.to_attrs() for pattern, codec in self.layers.items()}

    @classmethod
    def from_dict(cls, data: Any) -> "Recipe":
        """Rebuild a recipe from `to_dict`, or raise ConfigError."""
        if not isinstance(data, Mapping):
            raise ConfigError(str(_check.error("recipe", "a mapping of patterns to codecs", _check.describe(data))))
        layers = {}
        for pattern, attrs in data.items():
            if not isinstance(pattern, str):
                raise ConfigError(str(_check.error("recipe", "name patterns", _check.describe(pattern))))
            if attrs is not None and not isinstance(attrs, Mapping):
                raise ConfigError(f"recipe: {pattern!r}: expected codec fields or null, got {_check.describe(attrs)}")
            try:
                layers[pattern] = None if attrs is None else codec_from_attrs(attrs)
            except FormatError as reason:
                raise ConfigError(f"recipe: {pattern!r}: {reason}") from None
        return cls(layers)

    def to_yaml(self) -> str:
        """Return the recipe as YAML text."""
        import yaml  # loading and running models does without it

        return str(yaml.safe_dump(self.to_dict(), sort_keys=False))

    @classmethod
    def from_yaml(cls, text: str) -> "Recipe":
        """Rebuild a recipe from YAML text, or raise ConfigError."""
        import yaml

        if not isinstance(text, str):
            raise ConfigError(str(_check.error("recipe", "YAML text", _check.describe(text))))
        if len(text) > MAX_TEXT:
            raise ConfigError(f"recipe: expected at most {MAX_TEXT} characters of YAML, got {len(text)}")
        try:
            root = yaml.compose(text, yaml.SafeLoader)
            if (nodes := _count_nodes(root, {})) > MAX_NODES:
                raise ConfigError(f"recipe: expected at most {MAX_NODES} values, aliases written out, got {nodes:.3g}")
            data = yaml.safe_load(text)
        except PQNetError:
            raise
        except (
            Exception
        ) as reason:  # yaml makes dates, numbers and tags of text that is none: exceptions of many classes
            got = f"{type(reason).__name__}: {reason}"[:1000]
            raise ConfigError(f"recipe: expected YAML, got text that does not parse: {got}") from None
        if isinstance(data, Mapping) and isinstance(root, yaml.MappingNode) and len(root.value) > len(data):
            raise ConfigError("recipe: expected every pattern once, got one twice")
        return cls.from_dict(data)

    @classmethod
    def read(cls, path: str | Path) -> "Recipe":
        """Read a recipe from a YAML file."""
        try:
            with Path(path).open(encoding="utf-8") as file:
                text = file.read(MAX_TEXT + 1)
        except (OSError, TypeError, ValueError) as reason:
            raise PQNetError(f"recipe: expected a readable YAML file, got {path}: {reason}") from None
        return cls.from_yaml(text)


def _count_nodes(node: Any, counts: dict[int, float]) -> float:
    """Return how many values a YAML node stands for, aliases written out; infinitely many if it is part of itself."""
    if id(node) not in counts:
        counts[id(node)] = math.inf  # as long as it is not known
        pairs = node.value if isinstance(getattr(node, "value", None), list) else []
        children = [child for pair in pairs for child in (pair if isinstance(pair, tuple) else (pair,))]
        counts[id(node)] = 1.0 + sum(_count_nodes(child, counts) for child in children)
    return counts[id(node)]


def resolve_recipe(recipe: "Recipe | Mapping[str, Codec | None] | str", graph: Graph) -> dict[str, Codec | None]:
    """Return the codec of every layer of a graph, clamped to it, or raise ConfigError.

    Patterns that match no layer and codecs that do not fit the layers that they name are errors; the default is adapted
    to each layer, with a warning.
    """
    is_preset = isinstance(recipe, str)
    if isinstance(recipe, str):
        recipe = Recipe(PRESETS[_check.choice(recipe, "recipe", tuple(PRESETS))](graph))
    elif not isinstance(recipe, Recipe):
        recipe = Recipe(recipe)
    layers = graph.layers()
    stem, default = first_conv(layers), recipe.layers.get("default")
    found, lost = choose_by_name(layers, recipe.layers, stem)
    if lost:
        near = did_you_mean(lost[0], [*layers, "default"])
        raise ConfigError(f"recipe: pattern {lost[0]!r} matches no layer; the layers are {_some(list(layers))}{near}")
    shapes = {name: tuple(graph.params[node.params["weight"]].shape) for name, node in layers.items()}
    globs = [pattern for pattern in recipe.layers if pattern != "default"]
    others = [name for name in layers if name != stem and not any(fnmatchcase(name, glob) for glob in globs)]
    chosen: dict[str, Codec | None] = {}
    for name, codec in found.items():
        if codec is not None and name in others:
            chosen[name] = adapted(codec, shapes[name])
            continue
        try:
            chosen[name] = codec and codec.check(shapes[name])
        except ConfigError as reason:
            raise ConfigError(f"layer {name!r}: {reason}") from None
    if default is not None:
        _tell_adapted(default, {name: (shapes[name], chosen[name]) for name in others})
    if not any(chosen.values()):
        raise ConfigError(
            f"recipe: expected a codec for at least one layer, got none; layers are {_some(list(layers))} (the first "
            "convolution only by its name or a glob)"
        )
    if is_preset or recipe.layers.get("default") or recipe.layers.get("*"):
        _warn_if_mostly_float(graph, chosen)
    return chosen


def choose_by_name(
    names: Iterable[str], patterns: Mapping[str, X | None], stem: str | None
) -> tuple[dict[str, X | None], list[str]]:
    """Return what patterns choose for each name, and which of them match none; see `Recipe` for the rule.

    ``stem`` is the name that ``"default"`` spares, of the first convolution. Names that nothing is chosen for get None.
    """
    names = list(names)
    globs = [pattern for pattern in patterns if pattern != "default"]
    chosen: dict[str, X | None] = {}
    used: set[str] = set()
    for name in names:
        matching = [glob for glob in globs if fnmatchcase(name, glob)]
        used.update(matching)
        if matching:
            chosen[name] = patterns[max(matching, key=lambda glob: (len(glob), glob in names))]
        else:
            chosen[name] = None if name == stem else patterns.get("default")
    return chosen, [glob for glob in globs if glob not in used]


def _warn_if_mostly_float(graph: Graph, chosen: Mapping[str, Codec | None]) -> None:
    """Say so where a recipe for the whole network quantizes less than half of it."""
    sizes = {name: math.prod(p.shape) for name, p in graph.params.items() if not _is_integer(p)}
    layers = graph.layers()
    packed = {layers[name].params["weight"] for name, codec in chosen.items() if codec is not None}
    share = sum(sizes[name] for name in packed) / max(1, sum(sizes.values()))
    if share < MOSTLY:
        left = sorted((name for name in sizes if name not in packed), key=lambda name: -sizes[name])
        warnings.warn(
            f"recipe: {1 - share:.0%} of the network's numbers stay float, the most in {_some(left[:3])}; name their "
            "layers in the recipe, or see pqnet.plan",
            stacklevel=3,
        )


def _is_integer(param: Any) -> bool:
    return isinstance(param, np.ndarray) and param.dtype.kind != "f"


def _tell_adapted(default: Codec, chosen: Mapping[str, tuple[tuple[int, ...], Codec | None]]) -> None:
    """Warn of layers, given by shape and codec, that have another codec than the default."""
    if changed := {name: found for name, found in chosen.items() if not fits(default, found[0])}:
        warnings.warn(adaptation_table(default, changed), stacklevel=4)


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
