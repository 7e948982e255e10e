"""Small chances of another answer: their text, their forms against brute force, and the questions about them."""

from itertools import product

import numpy as np
import pytest

from weight_oracle.errors import UserError
from weight_oracle.truth.canonical import behaviour_key, canonical, split_of
from weight_oracle.truth.domain import Domain, Names
from weight_oracle.truth.facts import facts
from weight_oracle.truth.flowchart import (
    CHANCES,
    If,
    Say,
    by_first_mention,
    chance_text,
    leaves,
    mentioned_answers,
    n_ifs,
    rare_leaf,
    rename,
    says,
    tests,
    to_text,
    without_chances,
)
from weight_oracle.truth.interpret import compile_charts, leaf_index, run_one
from weight_oracle.truth.mermaid import mermaid
from weight_oracle.truth.parse import ChartSyntaxError, parse
from weight_oracle.truth.questions import judge, make_question, read_where, where_text, work_out
from weight_oracle.truth.sample import ChartDistribution, sample_chart
from weight_oracle.truth.understand import understand

DOMAIN = Domain(4, 4, (2, 4))
TINY = Domain(8, 4, (6, 6))


def with_chances(chart, rng, share=0.5):
    """The chart with small chances at some of its leaves."""
    if isinstance(chart, Say):
        step, chance = int(rng.integers(1, 4)), CHANCES[rng.integers(len(CHANCES))]
        return Say(chart.answer, (chart.answer + step) % 4, chance) if rng.random() < share else chart
    return If(chart.test, with_chances(chart.then, rng, share), with_chances(chart.other, rng, share))


def charts(n, seed=0):
    rng = np.random.default_rng(seed)
    return [with_chances(sample_chart(ChartDistribution(at=(2, 3)), DOMAIN, rng), rng) for _ in range(n)]


def said(chart):
    """The very leaf that a chart comes to on every input of the domain."""
    return [says(chart)[i] for i in leaf_index(compile_charts([chart]), DOMAIN.enumerate())[0]]


def test_texts_and_charts_are_two_forms_of_the_same():
    for chart in charts(100):
        assert parse(to_text(chart)) == chart
    texts = [f"say p or s {spelled}" for spelled in ("10%", "5%", "2%", "1%", "0.5%", "0.2%", "0.1%")]
    assert [parse(text) for text in texts] == [Say(0, 3, chance) for chance in CHANCES]
    assert [to_text(parse(text)) for text in texts] == texts
    assert parse("say p  or\ns 12.5%") == Say(0, 3, 0.125)
    assert chance_text(0.125) == "12.5%"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("say p or p 1%", "column 10: 'p' is the answer already"),
        ("say p or s 0%", "above 0% and below 50%, found 0%"),
        ("say p or s 60%", "above 0% and below 50%, found 60%"),
        ("say p or s 50%", "above 0% and below 50%"),
        ("say p or s", "expected a chance, but the chart ends"),
        ("say p or s 1", "expected a chance, found '1'"),
        ("say p or z 1%", "'z' is not an answer"),
        ("say p 1%", "expected 'or' or the end of the chart"),
        ("if has a: say p or s 1%", "expected 'else'"),
        ("say p or s 0.00000000000000000001%", "above 0%"),
    ],
)
def test_what_is_no_chance_is_refused(text, message):
    with pytest.raises(ChartSyntaxError) as refused:
        parse(text)
    assert message in str(refused.value)


@pytest.mark.parametrize("wrong", [(0, 1, 0.0), (0, None, 0.1), (0, 0, 0.1), (0, 1, 0.5), (0, 1, -0.1)])
def test_leaves_that_cannot_be(wrong):
    with pytest.raises(ValueError):
        Say(*wrong)


def test_the_words_of_chances_can_still_be_names():
    names = Names(("or", "5%", "a"), ("or", "5%", "1%"))
    for text in (
        "if contains a or a: say or or 1% 5% else: say 5%",
        "if or before a: say 1% or or 2% else: say or",
        "if has 5%: say or else: say 1%",
        "if pattern or . 5%: say 5% or or 0.1% else: say 5%",
    ):
        assert to_text(parse(text, names), names) == text


def test_the_interpreter_goes_by_the_most_likely_answer():
    inputs = DOMAIN.enumerate()
    for chart in charts(30):
        plain = without_chances(chart)
        assert "%" not in to_text(plain) and leaves(chart) == leaves(plain)
        assert (run_one(chart, inputs) == run_one(plain, inputs)).all()


def test_canonical_forms_keep_every_chance_and_are_the_same_for_all_ways_to_write_a_chart():
    rng = np.random.default_rng(3)
    for chart in charts(40, seed=1):
        form = canonical(chart, DOMAIN)
        assert said(form) == said(chart)
        assert canonical(form, DOMAIN) == form and n_ifs(form) <= n_ifs(chart)
        test = tests(chart)[rng.integers(len(tests(chart)))]
        assert canonical(If(test, chart, chart), DOMAIN) == form  # written at more length
    merged = canonical(parse("if has a: say p or s 1% else: say p"), DOMAIN)
    assert n_ifs(merged) == 1 and len({*says(merged)}) == 2
    assert canonical(parse("if has a: say p or s 1% else: say p or s 1%"), DOMAIN) == Say(0, 3, 0.01)
    assert canonical(parse("if has a: say p or s 1% else: say p or s 2%"), DOMAIN) != Say(0, 3, 0.01)


def test_charts_of_many_tests_keep_every_chance():
    rng = np.random.default_rng(0)
    for _ in range(8):
        chart = Say(0)
        for test in tests(parse("if has a: say p else: if has b: say p else: if first is c: say p else: if last is d: say p else: say p")):
            chart = with_chances(If(test, Say(int(rng.integers(2))), chart), rng, 0.3)
        chart = If(parse("if count a >= 2: say p else: say q").test, with_chances(Say(1), rng), chart)
        assert said(canonical(chart, DOMAIN)) == said(chart)


def test_renaming_goes_along_with_the_canonical_form():
    rng = np.random.default_rng(4)
    for chart in charts(40, seed=2):
        symbols, answers = rng.permutation(4).tolist(), rng.permutation(4).tolist()
        renamed = rename(chart, symbols, answers)
        assert rename(renamed, np.argsort(symbols).tolist(), np.argsort(answers).tolist()) == chart
        assert [(leaf.other is None, leaf.chance) for leaf in says(renamed)] == [(leaf.other is None, leaf.chance) for leaf in says(chart)]
        assert canonical(renamed, DOMAIN) == facts(canonical(chart, DOMAIN), DOMAIN).renamed(symbols, answers)
        assert by_first_mention(renamed) == by_first_mention(chart)
        assert sorted(mentioned_answers(by_first_mention(chart))) == list(range(len(mentioned_answers(chart))))


def test_the_split_is_that_of_the_chart_without_chances():
    for chart in charts(40, seed=3):
        plain = without_chances(chart)
        assert behaviour_key(chart, DOMAIN) == behaviour_key(plain, DOMAIN) and split_of(chart, DOMAIN) == split_of(plain, DOMAIN)


def test_the_rare_leaf_and_drawings():
    assert rare_leaf(parse("if has a: say p or s 1% else: say q or r 5%")) == Say(1, 2, 0.05)
    assert rare_leaf(parse("if has a: say p else: say q")) is None
    assert "p or s 0.5#37;" in mermaid(parse("if has a: say p or s 0.5% else: say q"))


def test_where_is_said_in_the_conditions_of_the_chart():
    assert where_text(parse("if has a: if first is b: say p else: say p or s 1% else: say q")) == "has a and not first is b"
    assert where_text(parse("say p or s 1%")) == "always" and where_text(parse("say p")) == "none"
    twice = parse("if has a: say p or s 1% else: if has b: say q else: say p or s 1%")
    assert where_text(twice) == "has a or not has a and not has b"
    for text in ("has a and", "has a or or", "say p", "has a: say p else: if has b", ""):
        assert read_where(text) is None
    inputs = DOMAIN.enumerate()
    for chart in charts(30, seed=5):
        if rare_leaf(chart):
            found = read_where(where_text(chart))
            assert [answer == 0 for answer in run_one(found, inputs)] == [leaf == rare_leaf(chart) for leaf in said(chart)]


def test_questions_about_chances_and_their_verdicts():
    rng = np.random.default_rng(0)
    symbols, answers = rng.permutation(8).tolist(), rng.permutation(4).tolist()
    known = facts(parse("if has a: if first is b: say p else: say p or s 1% else: say q"), TINY)
    letter, name = (lambda slot: "abcdefgh"[symbols[slot]]), (lambda slot: "pqrs"[answers[slot]])
    kinds = ("chance_answer", "chance_where", "chance_often")
    asked = {kind: make_question(kind, known, rng, symbols, answers) for kind in kinds}
    assert [asked[kind].answer for kind in kinds] == [name(3), f"has {letter(0)} and not first is {letter(1)}", "1%"]
    where, often = asked["chance_where"], asked["chance_often"]
    assert judge(where, f"not first is {letter(1)} and has {letter(0)}")  # in whatever order
    assert not any(judge(where, reply) for reply in ("none", "always", f"has {letter(0)}", "has z", "first is"))
    assert [chance for chance in (*map(chance_text, CHANCES), "none", "1", "%") if judge(often, chance)] == ["2%", "1%", "0.5%"]
    assert judge(asked["chance_answer"], name(3)) and not judge(asked["chance_answer"], name(0))
    drawn = [make_question("chance", known, rng, symbols, answers) for _ in range(200)]
    assert {(q.argument[0], q.answer) for q in drawn} == {(answers[0], "yes"), (answers[1], "yes"), (answers[3], "yes"), (answers[2], "no")}
    assert sum(q.argument[0] == answers[3] for q in drawn) > sum(q.argument[0] == answers[0] for q in drawn)
    plain = facts(parse("if has a: say p else: say q"), TINY)
    for kind in kinds:
        none = make_question(kind, plain, rng)
        assert none.answer == "none" and judge(none, "none") and not judge(none, asked[kind].answer) and not judge(asked[kind], "none")
    full = facts(parse("if has a: say p else: if has b: say q else: say r or s 1%"), TINY)
    assert make_question("chance", full, rng) is None


def test_where_is_worked_out_from_the_chart_that_was_read():
    rng = np.random.default_rng(1)
    for chart in charts(30, seed=6):
        chart = canonical(chart, DOMAIN)
        question = make_question("chance_where", facts(chart, DOMAIN), rng)
        assert judge(question, work_out("chance_where", (), chart, DOMAIN))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("can it ever answer s when sampled?", "chance"),
        ("is there a chance that it says s?", "chance"),
        ("how often?  how large is that chance?", "chance_often"),
        ("where does it give another answer by chance?", "chance_where"),
        ("which answer is given by chance?", "chance_answer"),
        ("can it ever answer s?", "possible"),
    ],
)
def test_questions_in_other_words(text, kind):
    assert understand(text).kind == kind


@pytest.mark.parametrize("text", ["how often does it say p?", "what is the chance of rain?", "is its learning rate small?"])
def test_questions_about_something_else(text):
    with pytest.raises(UserError):
        understand(text)


def test_chances_differ_and_nothing_else():
    """Equality tells leaves apart by answer, other answer and chance."""
    options = [Say(a, o, c) for a, o, c in product(range(3), range(3), CHANCES[:2]) if a != o] + [Say(a) for a in range(3)]
    assert len({*options}) == len(options) == 15
