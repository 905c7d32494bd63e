"""From photographs and texts to a network's inputs, and from its outputs to names: plain data in the file, no code.

What decodes images (Pillow) and cuts texts (tokenizers) is imported when it is first needed.
"""

from pqnet.processing.image import IMAGENET, ImageInput
from pqnet.processing.processing import Processing, likeliest, prepare, with_processing
from pqnet.processing.read import read_labels, read_processing
from pqnet.processing.text import TextInput

__all__ = [
    "IMAGENET",
    "ImageInput",
    "Processing",
    "TextInput",
    "likeliest",
    "prepare",
    "read_labels",
    "read_processing",
    "with_processing",
]
