"""Every block of README and docs runs as it is printed, in a folder that holds nothing but what the page made before.

Python blocks of a page share one namespace; lines of ``sh`` blocks that call ``pqnet`` are run; a block with a title
becomes the file of that name. A block that cannot run here says why in a comment before it::

    <!-- not run: needs the network -->
"""

import csv
import html
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

import pqnet
from pqnet.cli.main import build_parser, main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n+)?"
    r"^(?P<indent> *)```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
LANGUAGES = {"python", "sh", "yaml", "text", "math", "json", "dockerfile"}
SLOW = {"cluster.md", "codecs.md", "train.md", "tutorial.md"}  # many networks are quantized, processes started
NEEDS = {
    "train.md": ["torch"],
    "convert.md": ["onnx", "PIL", "torch", "transformers"],
    "tutorial.md": ["PIL", "matplotlib", "tokenizers", "torch"],
}
NEEDS |= {"cluster.md": ["distributed"]}
NEEDS |= {"README.md": ["torch"], "detection.md": ["torch", "transformers"], "onnx.md": ["onnx", "onnxruntime"]}


class Block(NamedTuple):
    """A block of code of a page."""

    line: int
    language: str
    title: str | None
    text: str
    reason: str | None


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    found = []
    for match in FENCE.finditer(text):
        indent = len(match["indent"])
        lines = "".join(line[indent:] if line.strip() else line for line in match["text"].splitlines(keepends=True))
        line = text.count("\n", 0, match.start("indent")) + 1
        found.append(Block(line, match["language"], match["title"], lines, match["reason"]))
    return found


def commands(text: str) -> list[list[str]]:
    """Return the words of every command of a shell block, without comments."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    return [shlex.split(line, comments=True) for line in lines]


def run_block(block: Block, page: Path, names: dict[str, object]) -> None:
    where = f"{page.relative_to(ROOT)}:{block.line}"
    if block.title:
        Path(block.title).parent.mkdir(parents=True, exist_ok=True)
        Path(block.title).write_text(block.text, "utf-8")
    if block.language == "python":
        exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
    elif block.language == "sh":
        for words in commands(block.text):
            assert words[0] == "pqnet", f"{where}: say why {words[0]!r} is not run"
            assert main(words[1:]) == 0, f"{where}: {shlex.join(words)}"


def cases() -> list[object]:
    some = [page for page in PAGES if any(b.language in ("python", "sh") and not b.reason for b in blocks(page))]
    slow = pytest.mark.exhaustive
    return [pytest.param(p, marks=slow if p.name in SLOW else (), id=str(p.relative_to(ROOT))) for p in some]


@pytest.mark.parametrize("page", cases())
def test_blocks_run(page, monkeypatch, tmp_path):
    for package in NEEDS.get(page.name, []):
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(str(tmp_path))  # blocks with a title may be modules
    before = set(sys.modules)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.reason is None:
            run_block(block, page, names)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_every_block_is_found_and_of_a_known_language():
    for page in PAGES:
        fences = [line for line in page.read_text("utf-8").splitlines() if line.lstrip().startswith("```")]
        assert len(fences) == 2 * len(blocks(page)), page
        assert {block.language for block in blocks(page)} <= LANGUAGES, page
        for comment in re.findall(r"<!-- not run.*", page.read_text("utf-8")):
            assert re.fullmatch(r"<!-- not run: .{10,} -->", comment), f"{page}: {comment}"


def test_few_blocks_are_not_run():
    """Of those that could run."""
    runnable = [b for page in PAGES for b in blocks(page) if b.language in ("python", "sh")]
    assert sum(b.reason is None for b in runnable) > 0.6 * len(runnable)


def test_blocks_that_fail_are_noticed(tmp_path, capsys):
    page = ROOT / "README.md"
    with pytest.raises(NameError):
        run_block(Block(1, "python", None, "model(x)\n", None), page, {})
    with pytest.raises(AssertionError, match="say why 'make'"):
        run_block(Block(1, "sh", None, "make demo\n", None), page, {})
    with pytest.raises(AssertionError, match=r"README\.md:1: pqnet inspect nothing\.h5"):
        run_block(Block(1, "sh", None, "pqnet inspect \\\n nothing.h5  # a comment\n", None), page, {})
    assert "nothing.h5" in capsys.readouterr().err


@pytest.mark.parametrize("page", NEEDS)
def test_pages_say_how_to_install_what_they_need(page):
    text = (ROOT / page if page == "README.md" else DOCS / page).read_text("utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    named = {extra for some in re.findall(r"['`][\w.]+\[([\w,]+)\]['`]", text) for extra in some.split(",")}
    given = {re.split(r"[>\[]", requirement)[0] for extra in named for requirement in extras[extra]}
    given |= set(re.findall(r"pip install ([\w-]+)", text))
    assert {{"PIL": "pillow"}.get(package, package) for package in NEEDS[page]} <= given


def test_readme_fits_a_screen_and_has_the_two_commands():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 100
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert {"demo", "test", "docs"} <= targets
    assert re.search(r"^make demo\b", text, re.MULTILINE) and re.search(r"^make test\b", text, re.MULTILINE)


def test_links_lead_somewhere():
    """MkDocs checks those between its pages; this one those of README, and of pages to files outside docs."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if not target.startswith(("http://", "https://")):
                assert (page.parent / target).exists(), f"{page}: {target}"


def test_every_public_name_is_in_the_reference():
    text = "".join(page.read_text("utf-8") for page in (DOCS / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
    names = {f"pqnet.{name}" for name in pqnet.__all__}
    import pqnet_converters

    names |= {f"pqnet_converters.{name}" for name in pqnet_converters.__all__}
    tree = (ROOT / "pqnet" / "train" / "__init__.py").read_text("utf-8")
    names |= {"pqnet.pipeline.run_dask", "pqnet.pipeline.run_many"}
    names |= {f"pqnet.train.{name}" for name in re.findall(r" as (\w+)$", tree, re.MULTILINE)}
    assert names == shown


def test_every_command_is_listed():
    parser = build_parser()
    [group] = [a for a in parser._actions if a.metavar == "COMMAND"]
    text = (DOCS / "commands.md").read_text("utf-8")
    assert group.choices is not None
    assert {f"pqnet {name}" for name in group.choices} <= set(re.findall(r"`(pqnet [a-z]+)", text))


def test_every_setting_of_the_environment_is_explained():
    files = [path for top in ("pqnet", "converters") for path in (ROOT / top).rglob("*.py")]
    names = {name for path in files for name in re.findall(r"\bPQNET_[A-Z_]+\b", path.read_text("utf-8"))}
    text = (DOCS / "caches.md").read_text("utf-8")
    assert names and not [name for name in names if f"`{name}`" not in text]


def test_the_table_of_operations_is_that_of_the_registry(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    operations = importlib.import_module("operations")
    assert (DOCS / "operations.md").read_text("utf-8") == operations.page(), "run python docs/operations.py"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python", "latex2mathml"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # of the theme, about another program
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


def test_the_table_of_networks_is_that_of_the_csv():
    with open(ROOT / "bench/reach.csv", encoding="utf-8", newline="") as file:
        counts = Counter((row["family"], row["result"]) for row in csv.DictReader(file))
    page = (DOCS / "convert.md").read_text("utf-8")
    table = re.findall(r"^\| (\w+): .* \| (\d+) \| (\d+) \| (\d+) \|$", page, re.MULTILINE)
    assert {family for family, _ in counts} == {family for family, *_ in table}
    for family, *numbers in table:
        assert [int(n) for n in numbers] == [counts[family, result] for result in ("pass", "fail", "none")]


def test_site_has_readme_formulas_and_the_reference(site):
    assert "grows by 46 MB" in (site / "index.html").read_text("utf-8")
    assert "<math" in (site / "mathematics.html").read_text("utf-8")
    assert "max_new_tokens" in (site / "reference" / "run.html").read_text("utf-8")


MEASURE = """
addEventListener("load", () => setTimeout(() => {
  const wide = (frame) => frame.contentDocument.documentElement.scrollWidth - frame.contentWindow.innerWidth;
  const frames = [...document.querySelectorAll("iframe")];
  document.title = JSON.stringify(frames.map((frame) => [frame.getAttribute("src"), wide(frame)]));
}, 1500));
"""


@pytest.mark.exhaustive
def test_no_page_has_to_be_scrolled_sideways(site, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    pages = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html") if path.name != "404.html")
    frames = [f'<iframe width="{width}" height="800" src="{page}"></iframe>' for page in pages for width in (400, 1280)]
    (site / "all.html").write_text(
        f"<!doctype html><title>?</title>{''.join(frames)}<script>{MEASURE}</script>", "utf-8"
    )
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile", "--dump-dom"]
    options += ["--allow-file-access-from-files", "--virtual-time-budget=15000", f"file://{site}/all.html"]
    done = subprocess.run([browser, *options], capture_output=True, text=True, timeout=300)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None, done.stderr
    found = json.loads(html.unescape(title[1]))
    assert len(found) == len(frames) > 40
    assert not [page for page, excess in found if excess > 0]
