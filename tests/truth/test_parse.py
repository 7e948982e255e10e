import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import random_chart

from weight_oracle.truth.domain import Names, default_names
from weight_oracle.truth.flowchart import to_text
from weight_oracle.truth.parse import ChartSyntaxError, parse

NAMES = default_names(8, 4)
ODD = Names(("hash", "3", "at2", "Größe", "-", "if2", "<x>", "12"), ("0", "7up", "no", "yes"))


@pytest.mark.parametrize("names", [NAMES, ODD])
def test_text_and_chart_are_one_to_one(names):
    rng = np.random.default_rng(0)
    for ifs in list(range(8)) * 15 + [64]:
        chart = random_chart(rng, 8, 4, ifs)
        assert parse(to_text(chart, names), names) == chart


def test_white_space_is_free():
    chart = parse("if has a :\n  say p\nelse:if\tb before a:\n say q else: say r\n")
    assert str(chart) == "if has a: say p else: if b before a: say q else: say r"


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("", 1, 1, "expected 'if' or 'say', but the chart ends"),
        ("say", 1, 4, "expected a name, but the chart ends"),
        ("say p q", 1, 7, "expected 'or' or the end of the chart, found 'q'"),
        ("if has a say p", 1, 10, "expected ':', found 'say'"),
        ("if first a: say p else: say q", 1, 10, "expected 'is', found 'a'"),
        ("if at x is a: say p else: say q", 1, 7, "expected a number, found 'x'"),
        ("if count a > 2: say p else: say q", 1, 12, "expected '>=', found '>'"),
        ("if count a >= 0: say p else: say q", 1, 15, "expected a number from 1 to 9999, found 0"),
        ("if has a:\n  say z\nelse: say q", 2, 7, "'z' is not an answer — use one of p, q, r, s"),
        ("if has p: say p else: say q", 1, 8, "'p' is not an input symbol — use one of a, b, c, d, e, f, g, h"),
        ("if contains a . b: say p else: say q", 1, 15, "expected ':' or a name, found '.'"),
        ("if has a: say p", 1, 16, "expected 'else', but the chart ends"),
    ],
)
def test_errors_say_where_and_what(text, line, column, message):
    with pytest.raises(ChartSyntaxError) as caught:
        parse(text, NAMES)
    assert (caught.value.line, caught.value.column) == (line, column)
    assert str(caught.value) == f"line {line}, column {column}: {message}"


@pytest.mark.parametrize(
    "text",
    [
        "x" * 10_001,
        "if has a: say p else: " * 65 + "say q",
        "if has a: " * 400,
        "if count a >= " + "9" * 9_000 + ": say p else: say q",
        "pattern " + "a . " * 2_000,
        "\x00",
    ],
)
def test_hostile_text_is_refused_at_once(text):
    with pytest.raises(ChartSyntaxError):
        parse(text, NAMES)


_WORDS = st.sampled_from("say if else has first last at count before contains pattern is >= . : a b p q 2 0 zz \n".split(" "))


@given(st.one_of(st.text(max_size=60), st.lists(_WORDS, max_size=30).map(" ".join)))
def test_any_text_parses_or_is_a_syntax_error(text):
    try:
        chart = parse(text, NAMES)
    except ChartSyntaxError as error:
        assert error.line >= 1 and error.column >= 1 and "\n" not in str(error)
    else:
        assert parse(to_text(chart, NAMES), NAMES) == chart
