"""What the documentation needs beside Markdown: formulas, as MathML, which browsers draw without a script."""

from pathlib import Path
from typing import Any

from latex2mathml.converter import convert


def _formula(source: str, *_: Any, **__: Any) -> str:
    return f'<div class="formula">{convert(source.strip(), display="block")}</div>'


def on_config(config: Any) -> Any:
    """Let fences of the language ``math`` be formulas in LaTeX, as on GitHub."""
    fence = {"name": "math", "class": "formula", "format": _formula}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    return config


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Let the first page be README, whose links are those of the folder above."""
    if page.file.src_uri != "index.md":
        return markdown
    return (Path(__file__).parents[1] / "README.md").read_text("utf-8").replace("](docs/", "](")
