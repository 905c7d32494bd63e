"""Which codec for which layer: recipes by name pattern."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pqnet import _check
from pqnet.codecs import Codec, codec_from_attrs
from pqnet.errors import ConfigError, FormatError, PQNetError
from pqnet.graph import Graph
from pqnet.pipeline.adapt import adaptation_table, adapted, fits
from pqnet.pipeline.presets import PRESETS, first_conv

__all__ = ["Recipe", "resolve_recipe"]


@dataclass(frozen=True)
class Recipe:
    """A codec for every layer, by name pattern.

    Parameters
    ----------
    layers : dict of str to Codec or None
        Keys are layer names or globs (``*``, ``?``, ``[..]``); of several that match a layer the longest wins; None
        keeps the layer in float. ``"default"`` is for layers that no other key matches, but for the first
        convolution, which then stays float as in the papers; without it they stay float. Where it does not fit a layer
        it is adapted, with a warning that lists what such layers have: the nearest divisor for d, the other layout, a
        smaller K, float for the smallest. Codecs of other keys have to fit.

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
        try:
            root, data = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError) as reason:
            raise ConfigError(f"recipe: expected YAML, got text that does not parse: {reason}") from None
        if isinstance(root, yaml.MappingNode) and len(root.value) > len(data):
            raise ConfigError("recipe: expected every pattern once, got one twice")
        return cls.from_dict(data)

    @classmethod
    def read(cls, path: str | Path) -> "Recipe":
        """Read a recipe from a YAML file."""
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, TypeError, ValueError) as reason:
            raise PQNetError(f"recipe: expected a readable YAML file, got {path}: {reason}") from None
        return cls.from_yaml(text)


def resolve_recipe(recipe: "Recipe | Mapping[str, Codec | None] | str", graph: Graph) -> dict[str, Codec | None]:
    """Return the codec of every layer of a graph, clamped to it, or raise ConfigError.

    Patterns that match no layer and codecs that do not fit the layers that they name are errors; the default is adapted
    to each layer, with a warning.
    """
    if isinstance(recipe, str):
        recipe = Recipe(PRESETS[_check.choice(recipe, "recipe", tuple(PRESETS))](graph))
    elif not isinstance(recipe, Recipe):
        recipe = Recipe(recipe)
    layers = graph.layers()
    patterns = {p: c for p, c in recipe.layers.items() if p != "default"}
    stem, default = first_conv(layers), recipe.layers.get("default")
    chosen: dict[str, Codec | None] = {}
    used: set[str] = set()
    named: set[str] = set()
    for name, node in layers.items():
        matching = [p for p in patterns if fnmatchcase(name, p)]
        used.update(matching)
        named.update([name] if matching else ())
        shape = tuple(graph.params[node.params["weight"]].shape)
        if not matching:
            chosen[name] = None if default is None or name == stem else adapted(default, shape)
            continue
        codec = patterns[max(matching, key=len)]
        try:
            chosen[name] = codec and codec.check(shape)
        except ConfigError as reason:
            raise ConfigError(f"layer {name!r}: {reason}") from None
    if lost := [p for p in patterns if p not in used]:
        raise ConfigError(f"recipe: pattern {lost[0]!r} matches no layer; the layers are {_some(list(layers))}")
    if default is not None:
        _tell_adapted(default, graph, {n: c for n, c in chosen.items() if n not in named and n != stem})
    if not any(chosen.values()):
        raise ConfigError(
            f"recipe: expected a codec for at least one layer, got none; layers are {_some(list(layers))}"
        )
    return chosen


def _tell_adapted(default: Codec, graph: Graph, chosen: Mapping[str, Codec | None]) -> None:
    """Warn of layers that have another codec than the default."""
    layers = graph.layers()
    shapes = {name: tuple(graph.params[layers[name].params["weight"]].shape) for name in chosen}
    changed = {name: (shapes[name], codec) for name, codec in chosen.items() if not fits(default, shapes[name])}
    if changed:
        warnings.warn(adaptation_table(default, changed), stacklevel=4)


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
