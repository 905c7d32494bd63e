"""The report: figures against brute force, the drawing, the page as text and in a browser, bad input."""

import html
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from math import log2
from pathlib import Path

import numpy as np
import pytest

import pqnet
from pqnet import PQ, Additive, IntN, Model, PQNetError, Scalar, Sparse
from pqnet.cli.main import main
from pqnet.demo import load_images, model_path
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.report import page
from pqnet.report.card import model_card
from pqnet.report.drawing import HEIGHT, WIDTH, draw
from pqnet.report.gather import gather, histogram
from pqnet.report.layers import code_use

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

IMAGES, LABELS = load_images()[1][:60], load_images()[2][:60].astype(np.int64)
NASTY = "<script>throw 1</script> $x_{ & \"'é中|`*"


def rand(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def nasty_model():
    b = GraphBuilder({"x": ValueInfo(("n", 8))}, {"n": 2})
    x = b.add("linear", "x", name=NASTY, params={"weight": rand(16, 8)})
    y = b.add("linear", b.add("relu", x), name="last", params={"weight": rand(4, 16)})
    graph = b.build({"y": b.add("add", y, b.add("linear", x, name="side", params={"weight": rand(4, 16, seed=1)}))})
    graph.meta.update({"source": NASTY + "\x07\n", "quantization": "nonsense", "labels": ["a", None, 1.5]})
    return Model(graph)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo network, quantized from its weights alone."""
    path = tmp_path_factory.mktemp("report") / "small.h5"
    pqnet.quantize(pqnet.load(model_path()), "small-blocks", metric="none").save(path)
    return path


@pytest.fixture(scope="module")
def text(small: Path) -> str:
    """The page of the demo network with all that can be given."""
    path = small.with_name("report.html")
    pqnet.write_report(small, path, against=model_path(), inputs=IMAGES, labels=LABELS, threads=1)
    return path.read_text("utf-8")


# -- figures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [PQ(k=20, d=4), Scalar(k=5), IntN(3)])
def test_use_of_codewords_is_that_of_counting(codec):
    packed = codec.fit(rand(16, 32))
    counts = Counter(packed.codes.ravel().tolist())
    shares = [n / packed.codes.size for n in counts.values()]
    use = code_use(packed)
    assert (use.codewords, use.used) == (packed.codec.k, len(counts))
    assert use.bits == log2(packed.codec.k) and use.entropy == pytest.approx(-sum(p * log2(p) for p in shares))
    sums = code_use(Additive([codec, Sparse(fraction=0.1)]).fit(rand(16, 32)))
    assert sums.codewords == use.codewords and 0 < sums.entropy <= sums.bits


def test_one_codeword_has_no_entropy_and_float_weights_have_no_codes():
    assert code_use(PQ(k=1, d=4).fit(rand(4, 8))) == (1, 1, 0.0, 0.0)
    assert code_use(rand(4, 8)) is None and code_use(Sparse(fraction=0.1).fit(rand(16, 32))) is None


def test_histograms_share_bins_and_leave_out_what_is_no_number():
    now, before = rand(1000), 2 * rand(500, seed=1)
    found = histogram(np.append(now, [np.nan, np.inf]), before)
    assert found.edges[0] == min(now.min(), before.min()) and found.edges[-1] == max(now.max(), before.max())
    assert found.now.sum() == pytest.approx(1) and found.before.sum() == pytest.approx(1)
    assert histogram(np.zeros(3), None).now.sum() == 1 and histogram(np.array([np.nan]), None).now.sum() == 0


def test_what_is_gathered_is_what_computing_it_by_hand_gives(small):
    report = gather(small, model_path(), IMAGES, LABELS, batch=20, threads=1)
    model, teacher = pqnet.load(small), pqnet.load(model_path())
    logits, before = model(IMAGES), teacher(IMAGES)
    (row,) = report.outputs
    assert row.accuracy["top-1"] == np.mean(logits.argmax(1) == LABELS)
    assert row.accuracy_before["top-1"] == np.mean(before.argmax(1) == LABELS)
    assert row.same_class == np.mean(logits.argmax(1) == before.argmax(1))
    assert row.error == pytest.approx(np.square(logits - before).sum() / np.square(before).sum(), rel=1e-4)
    assert report.file_bytes == small.stat().st_size and report.samples == 60
    assert sum(layer.codes for layer in report.layers) == model.size().codes
    by_name = {layer.name: layer for layer in report.layers}
    packed, dense = (m.graph.params["layer1.0.conv1.weight"] for m in (model, teacher))
    layer = by_name["layer1.0.conv1"]
    assert layer.rate == 8 * packed.nbytes / dense.size
    error = np.square(packed.decode() - dense).sum() / np.square(dense).sum()
    assert layer.weight_error == pytest.approx(error, rel=1e-4)
    # The last layer's output is the network's.
    few, others = logits[:8], before[:8]
    drift = np.square(few - others).sum() / np.square(others).sum()
    assert by_name["fc"].drift == pytest.approx(drift, rel=1e-3)
    assert 0 < by_name["conv1"].drift < 2**-20  # the preset stores it as float16
    assert all(layer.seconds > 0 and layer.algorithm for layer in report.layers)
    assert sum(step.seconds for step in report.steps) >= sum(layer.seconds for layer in report.layers)
    recipe = pqnet.Recipe.from_yaml(report.recipe)
    assert recipe.layers["layer1.0.conv1"] == packed.codec and recipe.layers["conv1"] is None


def test_without_inputs_times_are_of_drawn_ones_and_a_float_network_has_no_recipe():
    report = gather(nasty_model(), threads=1)
    assert "drawn at random" in report.timed and report.steps and report.recipe == "" and not report.outputs


# -- drawing ---------------------------------------------------------------------------------------------------


def test_drawing_has_every_node_once_below_what_it_reads_and_beside_the_others():
    graph = pqnet.load(model_path()).graph
    sizes = {"layer1.0.conv1": (1000, 40_000), "layer2.0.conv2": (4000, 20_000)}
    drawing = draw(graph, sizes, dict.fromkeys(sizes, "pq"))
    inner = [box for box in drawing.boxes if box.kind != "end"]
    ops = [op for box in inner for op in re.sub(r";.*", "", box.label.split(": ", 1)[1]).split(" → ")]
    assert Counter(ops) == Counter(node.op for node in graph.nodes)
    places = {(round(box.x), round(box.y)) for box in drawing.boxes}
    assert len(places) == len(drawing.boxes)
    for x, y in places:
        assert not [o for o in places if o != (x, y) and abs(o[0] - x) < WIDTH and abs(o[1] - y) < HEIGHT]
        assert drawing.left <= x - WIDTH / 2 and x + WIDTH / 2 <= drawing.left + drawing.width
    for line in drawing.lines:
        start, *_, end = re.findall(r"(-?\d+) (-?\d+)", line.path)
        assert int(start[1]) < int(end[1])
    a, b = ({box.title: box for box in drawing.boxes}[name] for name in sizes)
    assert a.dense == 2 * b.dense == 40 * a.stored and b.stored == 4 * a.stored


def test_what_no_input_leads_to_is_drawn_right_above_its_reader():
    b = GraphBuilder({"x": ValueInfo(("n", 8))}, {"n": 2})
    x = b.add("relu", "x", name="first")
    for name in ("a", "b", "c"):
        x = b.add("linear", x, name=name, params={"weight": rand(8, 8)})
    table = b.add("exp", b.add("cast", b.add("arange", name="positions", end=8), dtype="float32"))
    graph = b.build({"y": b.add("add", x, table, name="sum")})
    layers = dict.fromkeys("abc", (1, 4))
    rows = {box.title: box.row for box in draw(graph, layers, dict.fromkeys("abc", "pq")).boxes}
    assert rows["positions"] == rows["sum"] - 1 == rows["c"]


# -- page ------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The elements of a page, whether they are closed, and what is wrong with them."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.elements = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_page(text: str) -> Page:
    page = Page(text)
    assert not page.open and len(page.ids) == len(set(page.ids))
    tags = Counter(tag for tag, _ in page.elements)
    assert tags["table"] == tags["caption"] and tags["h1"] == tags["main"] == tags["script"] == 1
    for tag, attrs in page.elements:
        assert not {"src", "onclick", "onload"} & set(attrs)
        for key in ("href", "xlink:href"):
            target = attrs.get(key)
            assert target is None or target == "data:," or (target.startswith("#") and target[1:] in page.ids)
        assert tag != "svg" or (attrs["role"] == "img" and attrs["aria-label"])
    assert not re.search(r"@import|url\((?!#)", text)
    return page


def test_page_is_self_contained_and_says_what_was_found(text, small):
    tags = Counter(tag for tag, _ in check_page(text).elements)
    assert tags["svg"] == 7 and tags["figure"] == 6
    right = float(np.mean(pqnet.load(small)(IMAGES).argmax(1) == LABELS))
    for words in ("small.h5", "digits.h5", f"{right:.2%}", "layer2.0.downsample.0", "10.24432/C50P49", "codec: pq"):
        assert words in text


def test_names_and_nonsense_in_files_stay_text(tmp_path):
    pqnet.write_report(nasty_model(), tmp_path / "r.html", threads=1)
    text = (tmp_path / "r.html").read_text("utf-8")
    check_page(text)
    assert "<script>throw" not in text and html.escape("<script>throw 1</script>") in text


def test_network_without_layers_has_a_page(tmp_path):
    b = GraphBuilder({"x": ValueInfo(("n", 4))}, {"n": 2})
    pqnet.write_report(Model(b.build({"y": b.add("relu", "x")})), tmp_path / "r.html", inputs=rand(3, 4), threads=1)
    check_page((tmp_path / "r.html").read_text("utf-8"))


# -- card and notebooks ----------------------------------------------------------------------------------------


def blocks(card: str, language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)\n```$", card, re.DOTALL | re.MULTILINE)
    return found


def test_card_says_how_the_network_is_run_and_what_it_is_made_of(small, monkeypatch, capsys):
    monkeypatch.chdir(small.parent)
    assert main(["card", "small.h5", "-o", "README.md"]) == 0
    card, model = Path("README.md").read_text("utf-8"), pqnet.load("small.h5")
    capsys.readouterr()
    exec(blocks(card, "python"), {})
    assert capsys.readouterr().out == "logits (2, 10)\n"
    np.save("inputs.npy", IMAGES)
    assert main(blocks(card, "sh").split()[1:]) == 0
    assert np.array_equal(np.load("outputs.npy"), model(IMAGES))
    recipe = pqnet.Recipe.from_yaml(blocks(card, "yaml"))
    packed = {name: getattr(model.graph.params[f"{name}.weight"], "codec", None) for name in model.graph.layers()}
    assert recipe.layers == packed
    assert f"| Total | {model.size().total:,} |" in card and f"| File | {small.stat().st_size:,} |" in card
    assert main(["card", "small.h5", "-o", "README.html"]) == 2


def test_card_of_nasty_names_keeps_its_tables(tmp_path):
    nasty_model().save(tmp_path / "m.h5")
    card = model_card(tmp_path / "m.h5")
    assert "<script>" not in card.replace("\\<", "")
    for table in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    exec(blocks(card, "python").replace("'m.h5'", repr(str(tmp_path / "m.h5"))), {})


def test_notebooks_show_tables(small):
    model = pqnet.load(small)
    size = model.size()
    for shown in (model, size, pqnet.Recipe({"default": PQ(k=16, d=4), "<b>": None}), nasty_model()):
        text = shown._repr_html_()
        tags = Counter(tag for tag, _ in Page(text).elements)
        assert tags["table"] == tags["caption"] > 0 and not tags["b"] and not tags["script"]
    cells = re.findall(r"<tr><td>fc</td>(.*?)</tr>", size._repr_html_())[0]
    part = size.per_layer["fc"]
    numbers = [int(n.replace(",", "")) for n in re.findall(r">([\d,]+)<", cells)]
    assert numbers == [part.codes, part.codebooks, part.other, part.dense]
    assert "pq k=16 d=4" in pqnet.Recipe({"default": PQ(k=16, d=4)})._repr_html_()
    assert f"<td>{packed_codec(model, 'fc')}</td>" in model._repr_html_()


def packed_codec(model: Model, layer: str) -> str:
    return str(model.graph.params[f"{layer}.weight"].codec)


def test_permuted_networks_are_not_compared_inside(small):
    model = pqnet.load(small)
    model.graph.meta["quantization"]["permute"] = True
    report = gather(model, model_path(), IMAGES, threads=1)
    assert all(layer.weight_error is None and layer.drift is None for layer in report.layers)
    assert report.outputs[0].error < 1 and "another order" in page.render(report)


# -- in a browser ----------------------------------------------------------------------------------------------

CHECK = """
<script>
const wrong = [];
addEventListener("error", (event) => wrong.push(event.message));
console.error = console.warn = (...words) => wrong.push(words.join(" "));
addEventListener("load", () => {
  const graph = document.getElementById("graph"), frame = graph.parentElement, before = graph.getAttribute("viewBox");
  const view = () => graph.getAttribute("viewBox");
  const down = (key) => new KeyboardEvent("keydown", { key, cancelable: true });
  const press = (key) => { frame.dispatchEvent(down(key)); return view(); };
  frame.focus();
  const focused = document.activeElement === frame, zoomed = press("+"), moved = press("ArrowDown");
  document.querySelector("[data-do=reset]").click();
  const outside = (e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest("svg");
  const wide = [...document.querySelectorAll("body *")].filter(outside).map((e) => e.outerHTML.slice(0, 80));
  const moves = new Set([before, zoomed, moved]).size, scroll = document.documentElement.scrollWidth;
  parent.found({ wrong, focused, moves, back: view() === before, scroll, inner: innerWidth, wide });
});
</script>
"""


@pytest.mark.parametrize("width", [400, 1280])
def test_page_in_a_browser(text, width, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    page = html.escape(text.replace("<head>", "<head>" + CHECK))
    outer = (
        "<!doctype html><title>nothing</title><script>function found(what) "
        f'{{ document.title = JSON.stringify(what); }}</script><iframe width="{width}" height="800" srcdoc="{page}">'
    )
    (tmp_path / "outer.html").write_text(outer, "utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    options += ["--window-size=1400,900", "--virtual-time-budget=5000", "--dump-dom", f"file://{tmp_path}/outer.html"]
    done = subprocess.run([browser, *options], capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None, done.stderr
    found = json.loads(html.unescape(title[1]))
    assert found["wrong"] == [] and found["wide"] == []
    assert found["inner"] == width and found["scroll"] <= width
    assert found["focused"] and found["moves"] == 3 and found["back"]


# -- the command, and bad input --------------------------------------------------------------------------------


def test_command(small, tmp_path, capsys):
    np.save("x.npy", IMAGES)
    np.save("y.npy", LABELS)
    files = ["--against", str(model_path()), "--inputs", "x.npy", "--labels", "y.npy"]
    assert main(["report", str(small), *files, "-o", "r.html", "--threads", "1"]) == 0
    assert "r.html: " in capsys.readouterr().out
    assert "top-1 accuracy" in Path("r.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-o r.pdf", "--output: expected a file name ending in .html, got r.pdf"),
        ("-o nowhere/r.html", "--output: expected a file in an existing folder"),
        ("-o r.html --labels y.npy", "--labels: expected --inputs with them"),
        ("-o r.html --inputs none.npy", "none.npy: expected a readable"),
        ("-o r.html --against none.h5", "none.h5"),
    ],
)
def test_bad_command_lines(small, arguments, message, capsys):
    assert main(["report", str(small), *arguments.split()]) == 2
    assert message in capsys.readouterr().err and not Path("r.html").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": LABELS}, "labels: expected inputs with them"),
        (
            {"inputs": IMAGES, "labels": LABELS[:5]},
            r"labels: expected one integer for each of 60 samples, got int64",
        ),
        ({"inputs": IMAGES, "labels": LABELS + 5}, "labels: expected class numbers below 10"),
        ({"inputs": IMAGES[:, 0]}, "input 'input': expected shape"),
        ({"inputs": {"other": IMAGES}}, "input"),
        ({"against": nasty_model()}, r"against: expected a network with the inputs \{'input'"),
        ({"against": 5}, "against: expected a Model or the path of one, got int"),
    ],
)
def test_bad_arguments(small, options, message):
    with pytest.raises(PQNetError, match=message):
        pqnet.write_report(small, "r.html", threads=1, **options)
    assert not Path("r.html").exists()


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_missing_packages_are_named_before_any_work(missing, monkeypatch, capsys):
    find = page.importlib.util.find_spec
    monkeypatch.setattr(page.importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    assert main(["report", "no-such-file.h5", "-o", "r.html"]) == 2
    assert re.search(rf"none of the name {missing}; pip install 'pqnet\[report\]'", capsys.readouterr().err)
