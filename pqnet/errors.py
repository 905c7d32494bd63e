"""The exceptions that pqnet raises for bad input: one family, so that one ``except PQNetError`` catches all."""

__all__ = ["ConfigError", "FormatError", "PQNetError", "UnsupportedOpError"]


class PQNetError(ValueError):
    """A call, a file or a network that pqnet cannot accept; the message names the argument and the way out."""


class FormatError(PQNetError):
    """A file that is damaged, hostile, of another version, or no pqnet file at all."""


class UnsupportedOpError(PQNetError):
    """An operation of a network for which pqnet has no rule."""


class ConfigError(PQNetError):
    """A recipe, codec or option that does not fit the network it is applied to."""
