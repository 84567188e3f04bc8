"""The INT8 report: what the page says, that it is a page whatever it is given, and that nothing in it leads outside."""

import base64
import hashlib
import math
import random
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.int8_report import render_report
from export.int8_report.charts import Scale, clipped_share, noise, pareto_front, rebinned, ticks
from export.int8_report.figures import fixed, percent, seconds, significant
from export.int8_report.markup import Markup, element, shortened
from export.quantize.summary import Candidate, LayerSummary, QuantizationSummary, RangeSummary
from runtime.manifest import Artefact, EngineInfo, Manifest, Preprocessing, Verification

PREPROCESSING = Preprocessing((64, 48), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
EVIL = "</code><script>alert('x')</script> \" onload=\"alert(1)\" & 'y' <img src=x>"


def manifest(*artefacts, name="tiny", task="classification"):
    return Manifest(name, task, ("a", "b"), (), (), PREPROCESSING, artefacts)


def artefact(scheme, **results):
    given = {"reference": "pytorch", "images": 500, "relative_error": 0.0234, "cosine": 0.99, "top1_agreement": 0.975}
    verification = Verification(**(given | results))
    file = f"model.int8.{scheme}.onnx"
    return Artefact(file, "onnx", "int8", 8_412_000, "0" * 64, scheme, None, verification)


def layer(name="conv", **values):
    return LayerSummary(**({"name": name, "operator": "Conv", "macs": 2_000_000, "precision": "int8"} | values))


def activation(name="relu", **values):
    given = {"method": "mse", "low": 0.0, "high": 4.0, "observed": (0.0, 5.0), "histogram": (50, 30, 12, 7, 1)}
    return RangeSummary(tensor=name, **(given | values))


def summary(layers=(), ranges=(), scheme="cpu", **values):
    given = {"effort": "normal", "seconds": 143.2, "images": 256}
    return QuantizationSummary(scheme=scheme, layers=tuple(layers), ranges=tuple(ranges), **(given | values))


def full(scheme="cpu"):
    """A summary in which everything is known."""
    layers = [
        layer(
            f"conv_{i}",
            macs=1_000_000 * (i + 1),
            precision="int8" if i else "float32",
            reason="" if i else "costs 3 dB",
            snr_db=20.0 + i,
            output_snr_db=40.0 - i,
            output_agreement=0.99,
            rounding_gain=2.25,
            bias_shift=0.031,
            equalized=i == 2,
            int8_ms=0.125,
            float_ms=0.25,
        )
        for i in range(4)
    ]
    drops = [(0.9, 1.0, 8.0), (0.4, 0.95, 9.0), (0.5, 0.9, 9.5), (0.1, 0.85, 10.0)]
    candidates = tuple(Candidate(("conv_0",) * i, share, drop, 30.0, ms) for i, (drop, share, ms) in enumerate(drops))
    ranges = [activation(f"relu_{i}") for i in range(3)]
    return summary(layers, ranges, scheme, candidates=candidates, chosen=1, stays_float=(("Softmax", 2),))


def parse(page):
    """The page as a tree: it is XML, whose parser forgives nothing."""
    assert page.startswith("<!DOCTYPE html>\n")
    return ET.fromstring(page)


def text(node):
    return " ".join("".join(node.itertext()).replace("\u00a0", " ").split())


def svgs(tree, kind):
    return [svg for svg in tree.iter("svg") if svg.get("class") == kind]


# The page.


def test_what_the_page_says():
    page = render_report([full("cpu"), full("trt")], manifest(artefact("cpu"), artefact("trt", top1_agreement=0.97)))
    tree = parse(page)
    said = text(tree)
    assert text(tree.find("head/title")) == "tiny: INT8 report"
    assert "classification at 64×48 pixels" in said
    assert facts(tree, 0) == (
        "90.0 % multiply-accumulates in INT8; 97.5 % top-1 agreement with the float model; "
        "2.3 % relative error of the output; 3 of 4 layers in INT8; 500 images compared, onnxruntime; "
        "8.4 MB model.int8.cpu.onnx; 256 calibration images; normal effort; 2 min 23 s time to quantize"
    )
    assert "97.0 % top-1 agreement" in facts(tree, 1)
    assert "costs 3 dB" in said


def facts(tree, card):
    """`value what` for each fact of a card."""
    section = [node for node in tree.iter("section") if node.get("class") == "card"][card]
    pairs = [(text(div.find("dd")), text(div.find("dt"))) for div in section.iter("div")]
    return "; ".join(f"{value} {what}" for value, what in pairs)


def test_accuracy_is_what_was_lost_where_there_are_labels():
    results = {"accuracy": 0.8391, "reference_accuracy": 0.8415, "labelled_images": 2000}
    said = facts(parse(render_report([full()], manifest(artefact("cpu", **results)))), 0)
    assert "0.24 points of accuracy lost" in said
    assert "83.91 % (84.15 %) accuracy on 2000 images (reference)" in said


def test_an_artefact_that_was_not_verified_or_is_not_there():
    bare = replace(artefact("cpu"), verification=None)
    for page in (render_report([full()], manifest(bare)), render_report([full()], manifest())):
        assert "relative error" not in facts(parse(page), 0)


def test_engines_are_listed_with_what_they_answered_where_they_ran():
    def engine(capability, verification):
        file = f"model.int8.trt.tensorrt-10.3.0-sm{capability}.engine"
        info = EngineInfo("tensorrt", "10.3.0", "8.7", 1)
        return Artefact(file, "engine", "int8", 9_000_000, "0" * 64, "trt", info, verification)

    ran = replace(artefact("trt").verification, top1_agreement=0.964, backend="tensorrt")
    heads = replace(ran, top1_agreement=None, relative_error=0.031)
    cpu, trt = artefact("cpu"), artefact("trt")
    page = render_report(
        [full("cpu"), full("trt")], manifest(cpu, trt, engine(87, ran), engine(89, None), engine(90, heads))
    )
    of_cpu, of_trt = (facts(parse(page), card) for card in (0, 1))
    assert "96.4 % top-1 agreement model.int8.trt.tensorrt-10.3.0-sm87.engine" in of_trt
    assert "not run here model.int8.trt.tensorrt-10.3.0-sm89.engine" in of_trt
    assert "relative error 3.1 % model.int8.trt.tensorrt-10.3.0-sm90.engine" in of_trt
    assert "engine" not in of_cpu


def test_the_table_of_layers():
    tree = parse(render_report([full()], manifest()))
    table = list(tree.iter("table"))[-1]
    heads = [text(th) for th in table.iter("th") if th.get("scope") == "col"]
    expected = "#/Layer/Operator/Precision/MACs/SNR/Alone/Agreement/Rounding/Bias/Equalized/INT8/Float/Reason"
    assert "/".join(head.split()[0] for head in heads) == expected
    assert heads[4:6] == ["MACs millions", "SNR own output, dB"]
    rows = [[text(cell) for cell in row] for row in table.find("tbody")]
    assert rows[0][:9] == ["1", "conv_0", "Conv", "float32", "1.00", "20.0", "40.0", "99.0", "2.25"]
    assert rows[0][9:] == ["0.031", "no", "0.125", "0.250", "costs 3 dB"]
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    assert all(th.get("scope") == "row" for th in table.find("tbody").iter("th"))
    assert "sortable" in table.get("class")


def test_columns_of_what_was_not_measured_are_left_out_and_named():
    tree = parse(render_report([summary([layer(snr_db=30.0)])], manifest()))
    heads = [text(th) for th in tree.iter("th") if th.get("scope") == "col"]
    assert [head.split()[0] for head in heads][:4] == ["#", "Layer", "Operator", "Precision"]
    assert not any("Rounding" in head or "Agreement" in head for head in heads)
    assert "Not measured here: Alone, Agreement, Rounding gain, Bias shift, INT8, Float." in text(tree)


def test_a_picture_for_each_range():
    tree = parse(render_report([full()], manifest()))
    figures = [f for div in tree.iter("div") if div.get("class") == "grid-of" for f in div]
    assert [text(f.find("figcaption/b")) for f in figures] == ["relu_0", "relu_1", "relu_2"]
    # Bins are a unit wide: what lies above 4 is the last of five bins.
    assert "mse: 0 to 4; seen 0 to 5; 1 % clipped" in text(figures[0])
    svg = figures[0].find("svg")
    assert svg.get("aria-label") == "relu_0: values from 0 to 5, represented from 0 to 4"
    kept = next(r for r in svg.iter("rect") if r.get("class") == "kept")
    x = Scale(0, 5, 8, 212)
    assert (float(kept.get("x")), float(kept.get("width"))) == (8, pytest.approx(x(4) - 8, abs=0.01))
    path = next(p for p in svg.iter("path") if p.get("class") == "bins").get("d")
    heights = [66 - float(v) for v in re.findall(r"V(\d+)H", path)]
    assert heights == [round(60 * math.log1p(c) / math.log1p(50)) for c in (50, 30, 12, 7, 1)]


def test_bars_of_sensitivity():
    tree = parse(render_report([full()], manifest()))
    bars, profile = svgs(tree, "wide")[:1], svgs(tree, "wide")[1:]
    assert profile == []  # of four layers one picture tells all
    rects = [(r.get("class"), float(r.get("width")), text(r.find("title"))) for r in bars[0].iter("rect")]
    # The noise at the network's output counts where it was measured, the layer with the most comes first.
    assert [title.split(":")[0] for _, _, title in rects] == ["conv_3", "conv_2", "conv_1", "conv_0"]
    assert [kind for kind, _, _ in rects] == ["int8", "int8", "int8", "float"]
    assert rects[0][1] / rects[1][1] == pytest.approx(10 ** (1 / 20), abs=1e-3)
    assert "1.41 % (37.0 dB)" in rects[0][2]
    assert "noise at the network's output with this layer alone in INT8, % of the signal" in text(bars[0])


def test_the_profile_of_many_layers():
    layers = [layer(f"c{i}", snr_db=20.0 + i % 7) for i in range(40)]
    tree = parse(render_report([summary(layers)], manifest()))
    bars, profile = svgs(tree, "wide")
    assert len(list(bars.iter("rect"))) == 24
    assert len(list(profile.iter("rect"))) == 40
    assert "layer, in graph order" in text(profile)
    assert "own output" in text(bars)


def test_the_trade_off():
    tree = parse(render_report([full()], manifest()))
    latency, share = svgs(tree, "plot")
    assert "latency of one image, ms" in text(latency)
    assert "multiply-accumulates in INT8, %" in text(share)
    for svg in (latency, share):
        assert "agreement lost, points" in text(svg)
        kinds = [mark.get("class") for mark in svg.iter() if mark.find("title") is not None]
        assert kinds == ["best", "chosen", "beaten", "best"]  # the third loses more than the second and is slower
        assert "4 choices, 3 of them on the Pareto front" in svg.get("aria-label")
    titles = [text(mark.find("title")) for mark in latency.iter() if mark.find("title") is not None]
    assert titles[1] == "0.40 points of agreement lost, 95.0 % INT8, 1 layer in float, 9 ms"


def test_without_times_there_is_one_picture():
    known = full()
    untimed = tuple(replace(c, latency_ms=None) for c in known.candidates)
    tree = parse(render_report([replace(known, candidates=untimed, drop_of="accuracy")], manifest()))
    assert ["accuracy lost, points" in text(svg) for svg in svgs(tree, "plot")] == [True]


def test_why_operators_stay_float():
    left = (("Softmax", 2), ("Resize", 1), ("<Odd>", 1))
    said = text(parse(render_report([summary([layer()], stays_float=left)], manifest())))
    assert "2 Softmax (statistics and exponentials need the range of floats)" in said
    assert "1 Resize (interpolates between values)" in said
    assert "1 <Odd> (no integer kernel has it)" in said
    assert "Nothing: every operator" in text(parse(render_report([summary([layer()])], manifest())))


def test_the_same_every_time():
    known = [full("cpu"), full("trt")]
    assert render_report(known, manifest(artefact("cpu"))) == render_report(known, manifest(artefact("cpu")))


# Safe and self-contained.


class Reader(HTMLParser):
    """What a browser would see: the tags, their attributes, and the text of the script."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.script, self._in = [], [], "", False

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attr) for attr in attrs]
        self._in = tag == "script"

    handle_startendtag = handle_starttag

    def handle_data(self, data):
        if self._in:
            self.script += data

    def handle_endtag(self, tag):
        self._in = False


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


def evil():
    ranges = [activation(EVIL, method=EVIL)]
    layers = [
        layer(EVIL, operator=EVIL, precision=EVIL, reason=EVIL, snr_db=10.0),
        layer(f"{EVIL}2", snr_db=20.0, reason=EVIL),
    ]
    candidates = (Candidate((EVIL,), 0.9, 0.2, 20.0),)
    other = {"effort": EVIL, "drop_of": EVIL, "stays_float": ((EVIL, 3),), "candidates": candidates, "chosen": 0}
    return summary(layers, ranges, scheme=EVIL, **other)


def test_names_are_text_and_never_markup():
    page = render_report([evil()], manifest(artefact("cpu", backend=EVIL), name=EVIL))
    tree, seen = parse(page), read(page)
    assert seen.tags.count("script") == 1
    assert "alert" not in seen.script
    assert "img" not in seen.tags
    assert not [a for a in seen.attributes if a[1].startswith("on")]
    assert EVIL in text(tree)
    assert text(tree.find("body/header/h1")) == f"{EVIL} in INT8"


def test_nothing_is_loaded_from_anywhere():
    page = render_report([full(), evil()], manifest(artefact("cpu"), name=EVIL))
    seen = read(page)
    assert not {"link", "iframe", "img", "object", "embed", "base", "form", "video", "audio", "use"} & set(seen.tags)
    targets = [(name, value) for _, name, value in seen.attributes if name in ("href", "src", "xlink:href", "action")]
    assert targets
    assert all(value.startswith("#scheme-") for _, value in targets)
    ids = {value for _, name, value in seen.attributes if name == "id"}
    assert {value[1:] for _, value in targets} <= ids
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page)


def test_only_its_own_script_may_run():
    page = render_report([full()], manifest())
    policy = next(v for tag, name, v in read(page).attributes if tag == "meta" and name == "content" and "src" in v)
    digest = base64.b64encode(hashlib.sha256(read(page).script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert page.index("Content-Security-Policy") < page.index("<script")


def test_pictures_and_tables_have_names():
    tree = parse(render_report([full()], manifest()))
    assert tree.get("lang") == "en"
    for svg in tree.iter("svg"):
        assert svg.get("aria-hidden") == "true" or (svg.get("role") == "img" and svg.get("aria-label"))
    for table in tree.iter("table"):
        assert table.get("aria-label")
        assert all(th.get("scope") in ("col", "row") for th in table.iter("th"))


# Odd input.


ODD = [None, math.nan, math.inf, -math.inf, 0.0, -0.0, 1e308, -1e308, 5e-324, 1e-30, 12345.678]


def coordinates(tree):
    """Every number that says where something is drawn."""
    for svg in tree.iter("svg"):
        for node in svg.iter():
            for name in ("x", "y", "width", "height", "x1", "x2", "y1", "y2", "cx", "cy", "r"):
                if node.get(name) is not None:
                    yield name, float(node.get(name))
            path = node.get("d", "")
            assert re.fullmatch(r"[MHVZl\d. -]*", path)
            for value in re.findall(r"-?[\d.]+", path):
                yield "d", float(value)


def check(page):
    tree = parse(page)
    read(page)
    for name, value in coordinates(tree):
        assert math.isfinite(value), name
        assert abs(value) < 20_000, name
        assert name not in ("width", "height", "r") or value >= 0
    assert not re.search(r"\b(nan|inf|None)\b", text(tree.find("body")).replace("Infinity", ""))
    return tree


def test_no_layers_at_all():
    tree = check(render_report([summary()], manifest()))
    assert "The graph has no weighted layer." in text(tree)
    assert facts(tree, 0).startswith("– multiply-accumulates in INT8; 0 of 0 layers in INT8")
    assert "No INT8 graph was described" in text(check(render_report([], manifest())))


def test_one_layer():
    said = text(check(render_report([summary([layer("only", snr_db=31.5)], [activation()])], manifest())))
    assert "2.66 % (31.5 dB)" in said


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_numbers_that_are_none(value):
    number = math.nan if value is None else value
    odd = layer(
        "odd",
        macs=0,
        precision="float16",
        snr_db=value,
        output_snr_db=value,
        output_agreement=value,
        rounding_gain=value,
        bias_shift=value,
        int8_ms=value,
        float_ms=value,
    )
    ranges = [
        activation("a", low=number, high=number),
        activation("b", observed=(number, number)),
        activation("c", low=-1.0, high=number, observed=(-2.0, number), histogram=()),
        activation("d", histogram=(0, 0, 0)),
        activation("e", low=number, high=-1.0, observed=(1.0, -1.0), histogram=(3,)),
    ]
    candidates = (Candidate((), number, number, number, value), Candidate(("x",), 0.5, 0.1, 20.0, 3.0))
    for chosen in (0, 1, None):
        for layers in ([odd], [odd, layer("fine", snr_db=20.0, output_snr_db=30.0)]):
            known = summary(layers, ranges, seconds=number, images=0, effort="", candidates=candidates, chosen=chosen)
            results = {"relative_error": number, "top1_agreement": value}
            check(render_report([known], manifest(artefact("cpu", **results))))


def test_nothing_finite_to_choose_between():
    known = summary([layer()], candidates=(Candidate((), math.nan, math.nan, math.nan),), chosen=0)
    assert "there is no picture" in text(check(render_report([known], manifest())))


def test_five_hundred_layers_stay_small():
    generator = random.Random(0)
    names = [f"/features/stage{i // 9}/block{i % 9}/depthwise/Conv_output_{i}" for i in range(500)]
    histogram = tuple(generator.randrange(10**6) for _ in range(2048))
    layers = [
        replace(full().layers[1], name=name, snr_db=generator.gauss(30, 9), reason="kept: 2 dB") for name in names
    ]
    ranges = [activation(name, histogram=histogram, high=generator.random() * 5) for name in names]
    known = [summary(layers, ranges, scheme) for scheme in ("cpu", "trt")]
    page = render_report(known, manifest())
    assert len(page.encode()) < 2_000_000
    tree = check(page)
    figures = [f for div in tree.iter("div") if div.get("class") == "grid-of" for f in div]
    assert len(figures) == 1000
    # What is clipped the most is shown, the rest waits behind a click.
    shown = tree.findall("body/main/section/div[@class='grid-of']/figure")
    assert len(shown) == 48
    highs = sorted(entry.high for entry in ranges)[:24]
    captions = [text(f.find("figcaption")) for f in shown[:24]]
    assert sorted(float(c.split("to ")[1].split(";")[0]) for c in captions) == pytest.approx(highs, rel=6e-3)


def test_names_of_any_length():
    long = "a" * 100_000
    page = render_report([summary([layer(long, snr_db=3.0)] * 3, [activation(long)])], manifest(name=long))
    assert len(page) < 150_000
    check(page)
    short = shortened("abcdefghij", 5)
    assert (short, shortened("abc", 3), shortened("", 3)) == ("ab…ij", "abc", "")


def test_characters_that_no_page_can_hold():
    name = "a\x00b\x1bc\ud800d\u202ee\nf\uffff"
    page = render_report([summary([layer(name)], [activation(name)])], manifest(name=name))
    page.encode()
    assert "a\ufffdb\ufffdc\ufffdd\ufffde\ufffdf\ufffd" in text(check(page))


@settings(max_examples=60, deadline=None)
@given(st.text(), st.floats(), st.floats(), st.lists(st.integers(0, 10**12), max_size=9))
def test_any_range_and_any_name(name, a, b, histogram):
    ranges = [activation(name, low=a, high=b, histogram=tuple(histogram)), activation(observed=(a, b))]
    check(render_report([summary([layer(name, snr_db=a)], ranges)], manifest()))


# Small parts.


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_the_pareto_front_is_what_nothing_beats(points):
    def beats(p, q):
        return p != q and p[0] <= q[0] and p[1] <= q[1]

    expected = {q for q in points if not any(beats(p, q) for p in points)}
    front = pareto_front(points)
    assert {points[i] for i in front} == expected
    assert len(front) == len(expected)
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)
    assert all(points.index(points[i]) == i for i in front)  # of equal ones the first


def test_what_is_not_a_number_is_on_no_front():
    points = [(math.nan, 0.0), (1.0, math.inf), (2.0, 1.0), (-math.inf, 3.0)]
    assert pareto_front(points) == [2]
    assert pareto_front([]) == []


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e300, 1e300), st.floats(-1e300, 1e300))
def test_ticks_lie_between_the_ends(a, b):
    low, high = min(a, b), max(a, b)
    found = ticks(low, high)
    assert len(found) <= 12
    slack = (high / 2 - low / 2) * 1e-6 + abs(high) * 1e-9 + abs(low) * 1e-9
    assert all(low - slack <= tick <= high + slack for tick in found)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 23, [0, 5, 10, 15, 20]), (-3, 4, [-2, 0, 2, 4]), (2, 2, [2])],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)
    assert ticks(math.nan, 1) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 1000), max_size=200), st.integers(1, 60))
def test_fewer_bins_hold_as_many_values(counts, most):
    bins = rebinned(counts, most)
    assert len(bins) == min(most, len(counts))
    assert bins.sum() == pytest.approx(sum(counts))
    if len(counts) % most == 0 and counts:
        assert bins == pytest.approx(np.array(counts).reshape(most, -1).sum(1))


def test_the_share_that_is_clipped():
    entry = activation(low=1.0, high=3.5, observed=(0.0, 4.0), histogram=(10, 20, 30, 40))
    assert clipped_share(entry) == pytest.approx((10 + 20) / 100)
    assert clipped_share(replace(entry, histogram=())) is None
    assert clipped_share(replace(entry, low=-math.inf)) is None
    assert clipped_share(replace(entry, low=-1.0, high=9.0)) == 0.0
    constant = replace(entry, observed=(2.0, 2.0), histogram=(7,))
    assert (clipped_share(constant), clipped_share(replace(constant, high=1.5))) == (0.0, 1.0)


def test_noise_of_a_ratio():
    assert noise(20.0) == pytest.approx(0.1)
    assert noise(0.0) == 1.0
    assert (noise(None), noise(math.nan)) == (None, None)
    assert noise(math.inf) == pytest.approx(0, abs=1e-9)
    assert math.isfinite(noise(-math.inf))


def test_numbers_for_people():
    assert [fixed(v, 2) for v in (None, math.nan, math.inf, -math.inf, -1.234, -0.001)] == [
        "–",
        "–",
        "∞",
        "−∞",
        "−1.23",
        "0.00",
    ]
    assert [significant(v) for v in (0.0, 1234567.0, 1.5e-7, 12.0, -3.14159)] == [
        "0",
        "1.23e6",
        "1.5e-7".replace("-", "−"),
        "12",
        "−3.14",
    ]
    assert significant(2.0, zeros=True) == "2.00"
    assert significant(123.0, zeros=True) == "123"
    assert percent(0.97561) == "97.6\u00a0%"
    assert [seconds(v).replace("\u00a0", " ") for v in (0.04, 9.94, 9.96, 119.4, 119.6, 3661, None, math.nan)] == [
        "0.0 s",
        "9.9 s",
        "10 s",
        "119 s",
        "2 min 00 s",
        "61 min 01 s",
        "–",
        "–",
    ]


def test_elements():
    assert (
        element("td", "a<b", class_="x", aria_label='"', title=None) == '<td class="x" aria-label="&quot;">a&lt;b</td>'
    )
    assert element("line", x1=1.0, x2=2.345) == '<line x1="1" x2="2.35"/>'
    assert element("p", [Markup("<b>x</b>"), "&", None, ["<"]]) == "<p><b>x</b>&amp;&lt;</p>"
