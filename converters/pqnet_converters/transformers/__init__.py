"""Networks of the package transformers: texts by the names that tokenizers use, decoders with their cache."""

from pqnet_converters.transformers.from_transformers import from_transformers as from_transformers
