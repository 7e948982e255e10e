"""The demonstration from one end to the other with an oracle that knows nothing, and the page that it leaves."""

import json
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from weight_oracle.cli import main
from weight_oracle.report import chart_svg, chart_tree, percent, table
from weight_oracle.truth.domain import Domain, Names
from weight_oracle.truth.flowchart import n_ifs
from weight_oracle.truth.parse import parse

CHART = "if has a: say p else: if count b >= 2: say q else: say r"


@pytest.fixture(scope="module")
def ignorant(nano_recipe, nano_oracle):
    """The oracle's card names its recipe; this one is no built-in, so the card has to name the file."""
    card = json.loads((nano_oracle / "oracle.json").read_text())
    (nano_oracle / "oracle.json").write_text(json.dumps(card | {"zoos": [card["zoos"][0] | {"recipe": str(nano_recipe)}]}))
    return nano_oracle


def test_demo_shows_a_failure_as_a_failure(ignorant, tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "--oracle", str(ignorant), "--out", str(out), "--seed", "3", "--json", "--anyway"]) == 0
    printed, told = capsys.readouterr()
    result = json.loads(printed)
    assert (result["seed"], result["inputs"]) == (3, Domain(4, 3, (2, 3)).size)
    assert result["truth"]["agreement"] == 1 and result["scramble"]["answers_changed"] == 0 and result["scramble"]["change"] > 0.5
    assert result["read"]["agreement"] < 0.99 and "did NOT read" in told and "✗" in told
    assert all({"question", "truth", "answer", "probability", "known", "right", "control"} <= q.keys() for q in result["questions"])
    for folder in ("target", "scrambled", "control"):
        assert (out / folder / "model.safetensors").is_file()

    page = (out / "index.html").read_text()
    HTMLParser().feed(page)
    assert "did not read it right" in page and page.count("<svg") == 3 and "http" not in page and "flowchart TD" in page
    again = tmp_path / "again"
    assert main(["demo", "--oracle", str(ignorant), "--out", str(again), "--seed", "3", "--json", "--anyway"]) == 0
    same = json.loads(capsys.readouterr().out)
    assert {**same, "seconds": 0, "page": ""} == {**result, "seconds": 0, "page": ""}


def test_tree_of_text():
    assert chart_tree(parse(CHART)) == (
        "has a?\n"
        "├─ yes ─ say p\n"
        "└─ no ── count b >= 2?\n"
        "         ├─ yes ─ say q\n"
        "         └─ no ── say r"
    )  # fmt: skip
    assert chart_tree(parse("say q")) == "say q"


def test_svg_boxes_do_not_overlap_and_names_are_escaped():
    chart = parse("if first is a: if has b: if last is c: say p else: say q else: say r else: if pattern a . . b: say p else: say q")
    picture = ElementTree.fromstring(chart_svg(chart))
    boxes = [tuple(float(box.get(key) or 0) for key in ("x", "y", "width")) for box in picture.iter("rect")]
    assert len(boxes) == 2 * n_ifs(chart) + 1
    for i, (x, y, _) in enumerate(boxes):
        assert all(y != other_y or x + 1 >= other + width or other >= x for other, other_y, width in boxes[:i])
    assert all(0 <= x and x + width <= float(picture.get("width") or 0) for x, _, width in boxes)
    names = Names(("<b>&", "b"), ("p", '"'))
    assert "&lt;b&gt;&amp;" in chart_svg(parse('if has <b>&: say p else: say "', names), names)


def test_table_and_percent():
    assert table(("name", "n"), [("a", 1), ("long", 1234)]) == "name      n\na         1\nlong  1,234"
    assert (percent(1.0), percent(0.99996), percent(0.5)) == ("100.0%", "99.9%", "50.0%")
