"""What a package index shows and installs: metadata that hold for this source tree. `make dist` builds and installs."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
SOURCES = [path for top in ("pqnet", "converters", "docs", "tests") for path in (ROOT / top).rglob("*.[pm][yd]")]


def test_the_description_leads_nowhere_that_an_index_has_not() -> None:
    text = (ROOT / PROJECT["readme"]).read_text("utf-8")
    assert "pip install pqnet" in text and text.startswith("# pqnet\n")
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets and all(target.startswith("https://") for target in targets)


def test_extras_that_are_named_exist() -> None:
    lists = {names for path in SOURCES for names in re.findall(r"pqnet\[([a-z,]+)\]", path.read_text("utf-8"))}
    named = {name for names in lists for name in names.split(",")}
    assert {"torch", "sign", "report"} <= named <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize(
    ("extra", "package"), [("torch", "safetensors"), ("sign", "cryptography"), ("image", "pillow")]
)
def test_extras_hold_what_is_asked_for(extra: str, package: str) -> None:
    assert any(re.match(rf"{package}\b", line) for line in PROJECT["optional-dependencies"][extra])


def test_classifiers_are_those_of_the_versions_that_are_supported() -> None:
    oldest = PROJECT["requires-python"].removeprefix(">=")
    minors = re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.M)
    assert minors[0] == oldest and minors == [f"3.{11 + i}" for i in range(len(minors))]
    assert all(len(label) <= 32 and url.startswith("https://") for label, url in PROJECT["urls"].items())


def test_versions_agree() -> None:
    init = (ROOT / "pqnet" / "__init__.py").read_text("utf-8")
    assert f'__version__ = "{PROJECT["version"]}"' in init
