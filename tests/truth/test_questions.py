from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from reference import random_chart, words

from weight_oracle.errors import UserError
from weight_oracle.truth.canonical import canonical
from weight_oracle.truth.domain import DEFAULT_NAMES, Domain, Names, default_names
from weight_oracle.truth.facts import facts
from weight_oracle.truth.flowchart import rename, to_text
from weight_oracle.truth.interpret import run_one
from weight_oracle.truth.parse import parse
from weight_oracle.truth.phrasings import QUESTION_KINDS, list_questions, phrasing
from weight_oracle.truth.questions import WORKED_OUT, Balance, argument_text, in_names, is_exact, judge, make_question, work_out
from weight_oracle.truth.sample import ChartDistribution, sample_chart
from weight_oracle.truth.triggers import TriggerDistribution, plant
from weight_oracle.truth.understand import understand

TINY = Domain(8, 4, (6, 6))
SMALL = Domain(8, 4, (4, 6))
LISTED = Domain(4, 3, (2, 4))
ALL_NAMES = default_names(22, 4)
OFF_TOPIC = (Path(__file__).parent / "off_topic.txt").read_text().splitlines()


def charts(domain: Domain, n: int, seed: int = 0) -> list:
    rng = np.random.default_rng(seed)
    return [sample_chart(ChartDistribution(), domain, rng) for _ in range(n)]


def question(kind: str, text: str, domain: Domain = TINY, want: str | None = None, **renaming):
    """The first question of a kind about a chart, of those whose argument is `want`."""
    for seed in range(300):
        found = make_question(kind, facts(parse(text), domain), np.random.default_rng(seed), **renaming)
        if found and (want is None or want == argument_text(kind, found.argument)):
            return found
    raise AssertionError(f"no such question: {kind} {want}")


def test_facts_are_those_found_by_listing_all_inputs():
    rng = np.random.default_rng(0)
    inputs = LISTED.enumerate()
    listed = words(inputs)
    for _ in range(60):
        chart = random_chart(rng, LISTED.symbols, LISTED.answers, int(rng.integers(0, 4)))
        known = facts(chart, LISTED)
        answer_of = dict(zip(listed, run_one(chart, inputs).tolist(), strict=True))

        assert all(known.answer(word) == answer for word, answer in answer_of.items())
        assert known.possible == tuple(sorted(set(answer_of.values())))
        for symbol in range(LISTED.symbols):
            assert known.possible_with(symbol) == tuple(sorted({answer_of[word] for word in listed if symbol in word}))
        assert known.order_matters == any(len({answer_of[other] for other in permutations(word)}) > 1 for word in listed)
        assert known.mattering == mattering(answer_of)

        order = rng.permutation(LISTED.symbols).tolist()
        for answer in range(LISTED.answers):
            giving = [word for word in listed if answer_of[word] == answer]
            first = min(giving, key=lambda word: (len(word), [order[x] for x in word]), default=None)
            assert known.first_input(answer, order) == first
            if giving:
                assert {answer_of[known.random_input(rng, answer)] for _ in range(20)} == {answer}
        assert {known.random_input(rng) for _ in range(20)} <= set(listed)


def mattering(answer_of: dict) -> tuple[int, ...]:
    def interchangeable(s: int, t: int) -> bool:
        swapped = ((word, i) for word in answer_of for i, x in enumerate(word) if x == s)
        return all(answer_of[word] == answer_of[(*word[:i], t, *word[i + 1 :])] for word, i in swapped)

    symbols = range(LISTED.symbols)
    classes = {frozenset(t for t in symbols if interchangeable(s, t)) for s in symbols}
    largest = [c for c in classes if len(c) == max(map(len, classes))]
    return tuple(s for s in symbols if len(largest) > 1 or s not in largest[0])


def test_symbols_that_matter():
    assert facts(parse("if has c: say p else: if first is a: say q else: say p"), TINY).mattering == (0, 2)
    assert facts(parse("if a before b: say p else: say q"), TINY).mattering == (0, 1)
    assert facts(parse("if has a: say p else: say p"), TINY).mattering == ()
    assert facts(parse("if has a: say p else: say q"), Domain(2, 2, (3, 3))).mattering == (0, 1)  # no background


def test_a_charts_text_is_canonical_under_every_renaming():
    rng = np.random.default_rng(1)
    for domain in (TINY, SMALL):
        for chart in charts(domain, 60):
            symbols, answers = rng.permutation(8), rng.permutation(4)
            expected = canonical(rename(chart, symbols.tolist(), answers.tolist()), domain)
            assert facts(chart, domain).text(symbols, answers) == to_text(expected)


@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_true_answers_are_right_and_renaming_the_chart_is_renaming_the_question(kind):
    rng = np.random.default_rng(2)
    for seed, chart in enumerate(charts(SMALL, 40, seed=3)):
        symbols, answers = (22 - 1 - rng.permutation(8)).tolist(), rng.permutation(4).tolist()
        asked = make_question(kind, facts(chart, SMALL), np.random.default_rng(seed), symbols, answers)
        if asked is None:
            continue
        assert judge(asked, asked.answer)
        assert judge(asked, f" {asked.answer.upper()} ")
        assert not judge(asked, "") and not judge(asked, "say") and not judge(asked, "b b")
        plain = make_question(kind, facts(chart, SMALL), np.random.default_rng(seed))
        assert plain is not None and (asked.kind, asked.phrasing) == (plain.kind, plain.phrasing)
        if kind != "example":
            slots = answers if QUESTION_KINDS[kind].argument == "answer" else symbols
            assert asked.argument == tuple(slots[slot] for slot in plain.argument)
        for word in asked.text.replace("?", " ").replace(":", " ").split():
            assert len(word) > 1 or word in {DEFAULT_NAMES.symbols[slot] for slot in symbols} | set("pqrs")


def test_replies_are_judged_by_meaning():
    chart = "if has a: say p else: if count b >= 2: say q else: say r"
    drawn = question("chart", chart)
    assert judge(drawn, "if count b >= 2: if has a: say p else: say q else: if has a: say p else: say r")
    assert is_exact(drawn, "if count b >= 2: if has a: say p else: say q else: if has a: say p else: say r")
    assert not judge(drawn, "if has a: say p else: if count b >= 3: say q else: say r")
    assert not judge(drawn, "if has z: say p else: say q")  # no such symbol in the target
    assert not judge(drawn, "if has a: say p")
    many = "say p"
    for a, b in permutations("abcdefgh", 2):
        many = f"if {a} before {b}: say p else: {many}"
    assert not judge(drawn, many)

    example = question("example", chart, want="q")
    assert example.answer == "b b b b b b"
    assert judge(example, "c d b e b f") and not judge(example, "c d b e f f") and not judge(example, "b b") and not judge(example, "none")
    assert not judge(example, "b b b b b z")
    none = question("example", chart, want="s")
    assert none.answer == "none" and judge(none, "none") and not judge(none, "a a a a a a")

    both = question("contains", chart, want="b")
    assert both.answer == "p or q or r"
    assert judge(both, "r or q or p") and not judge(both, "p or q") and not judge(both, "always p")
    always = question("contains", chart, want="a")
    assert always.answer == "always p" and judge(always, "p")

    symbols = question("symbols", chart)
    assert symbols.answer == "a b" and judge(symbols, "b, a") and not judge(symbols, "a")


def test_yes_and_no_are_equally_frequent():
    rng = np.random.default_rng(4)
    population = [facts(chart, TINY) for chart in charts(TINY, 400, seed=5)]
    balance = Balance.of(population)
    assert balance.order_no == 1.0 and balance.order_yes < 0.5
    for kind in ("order", "possible"):
        asked = [make_question(kind, known, rng, balance=balance) for known in population * 4]
        verdicts = [found.answer for found in asked if found]
        assert len(verdicts) > 400
        assert abs(verdicts.count("yes") / len(verdicts) - 0.5) < 0.08


def test_questions_are_a_function_of_the_seed_and_of_nothing_else():
    chart = charts(SMALL, 1)[0]
    for kind in QUESTION_KINDS:
        first, second = (make_question(kind, facts(chart, SMALL), np.random.default_rng(6)) for _ in range(2))
        assert (first and (first.text, first.answer)) == (second and (second.text, second.answer))
    with pytest.raises(ValueError, match="no such kind"):
        make_question("colour", facts(chart, SMALL), np.random.default_rng(0))


def test_wordings():
    trained = {word for kind in QUESTION_KINDS.values() for wording in kind.training for word in wording.strip("?").split()}
    for kind in QUESTION_KINDS.values():
        assert len(kind.training) >= 6 and len(kind.held_out) >= 2
        assert len(set(kind.training + kind.held_out)) == len(kind.training + kind.held_out)
        for wording in kind.training + kind.held_out:
            assert ("{}" in wording) == (kind.argument != "nothing")
            assert all(len(word.strip("?:.,")) > 1 for word in wording.split())
        for wording in kind.held_out:
            assert all(word.strip("?:.,") in {known.strip("?:.,") for known in trained} for word in wording.split())

    drawn = {True: set(), False: set()}
    for seed in range(100):
        for held_out, seen in drawn.items():
            found = make_question(
                "symbols", facts(parse("if has a: say p else: say q"), TINY), np.random.default_rng(seed), held_out=held_out
            )
            assert found is not None
            seen.add(found.text)
    assert drawn == {True: set(QUESTION_KINDS["symbols"].held_out), False: set(QUESTION_KINDS["symbols"].training)}


def test_every_wording_is_understood():
    rng = np.random.default_rng(7)
    for kind in QUESTION_KINDS.values():
        arguments = {
            "nothing": [()],
            "input": [tuple(rng.integers(0, 22, 6).tolist()) for _ in range(30)],
            "answer": [(slot,) for slot in range(4)],
            "symbol": [(slot,) for slot in range(22)],
        }[kind.argument]
        names = DEFAULT_NAMES.answers if kind.argument == "answer" else DEFAULT_NAMES.symbols
        for index in range(len(kind.training + kind.held_out)):
            for argument in arguments:
                asked = phrasing(kind.name, index, " ".join(names[slot] for slot in argument))
                understood = understand(asked.capitalize() if asked[1] != " " else asked, ALL_NAMES)
                assert (understood.kind, understood.argument) == (kind.name, argument), asked
                assert understood.familiar


def test_off_topic_questions_are_refused():
    assert len(OFF_TOPIC) == len(set(OFF_TOPIC)) == 50
    refused = 0
    for asked in OFF_TOPIC:
        try:
            understand(asked, ALL_NAMES)
        except UserError as error:
            refused += 1
            assert error.exit_code == 2 and "weight-oracle questions" in str(error)
    assert refused >= 45


@pytest.mark.parametrize(
    ("asked", "kind", "argument"),
    [
        ("What's the flow chart?", "chart", ()),
        ("could you draw me the flowchart please", "chart", ()),
        ("Which tokens influence the output", "symbols", ()),
        ("Is the network sensitive to the order of its inputs?", "order", ()),
        ("if I shuffle the symbols, does the answer change?", "order", ()),
        ("can you give me an input where it says Q?", "example", (1,)),
        ("can the model ever output q", "possible", (1,)),
        ("what does it say if there's an a?", "contains", (0,)),
        ("What happens if a symbol occurs, such as a?", "contains", (0,)),
        ("what is the answer when 'i' is in the input?", "contains", (8,)),
        ("what does it answer on i a, b, A i a?", "answer", (8, 0, 1, 0, 8, 0)),
        ("a b c d e f", "answer", (0, 1, 2, 3, 4, 5)),
        ("does it say p on a b c d?", None, ()),
        ("does it say p if the input contains a?", None, ()),
        ("which input does not give p?", None, ()),
        ("what happens when the input doesn't contain a?", None, ()),
        ("what happens when the input starts with a?", None, ()),
        ("", None, ()),
        ("?", None, ()),
    ],
)
def test_a_users_own_words(asked, kind, argument):
    if kind is None:
        with pytest.raises(UserError):
            understand(asked, ALL_NAMES)
    else:
        understood = understand(asked, ALL_NAMES)
        assert (understood.kind, understood.argument) == (kind, argument)


def test_a_targets_own_names():
    names = Names(("red", "Green", "<x>", "on"), ("stop", "go"))
    understood = understand("What does it answer on red Green <x> on?", names)
    assert (understood.kind, understood.argument) == ("answer", (0, 1, 2, 3))
    assert understood.text == "what does it answer on a b c d?" == understood.canonical_text
    assert understand("can it ever say go?", names).canonical_text == "can it ever answer q?"
    assert understand("what happens if the input contains green", names).argument == (1,)
    assert in_names("if has b: say p else: say q", names) == "if has Green: say stop else: say go"

    with pytest.raises(UserError, match="'blue' is not an input symbol"):
        understand("what does it answer on red blue red?", names)
    with pytest.raises(UserError, match="3 symbols, this target takes 4 to 6") as refused:
        understand("what does it answer on red red red?", names, lengths=(4, 6))
    assert refused.value.exit_code == 2


def test_the_listed_examples_are_true():
    listed = list_questions()
    assert [entry["kind"] for entry in listed] == list(QUESTION_KINDS)
    chart = listed[0]["answer"]
    for entry in listed:
        understood = understand(entry["example"], ALL_NAMES)
        assert understood.kind == entry["kind"] and understood.canonical_text == entry["example"]
        if entry["kind"] == "answer":
            assert DEFAULT_NAMES.answers[facts(parse(chart), TINY).answer(understood.argument)] == entry["answer"]
        else:
            assert judge(question(entry["kind"], chart, want=argument_text(entry["kind"], understood.argument)), entry["answer"])


def test_answers_worked_out_from_the_true_chart_are_right():
    rng, domain, said = np.random.default_rng(5), Domain(5, 4, (3, 4)), []
    hidden = TriggerDistribution(("pattern", "contains"), (3, 4))
    for turn in range(60):
        chart = sample_chart(ChartDistribution(), domain, rng)
        known = facts(plant(chart, hidden, domain, rng)[0] if turn % 2 else chart, domain)
        for kind in WORKED_OUT:
            question = make_question(kind, known, rng)
            if question is None:
                assert kind in ("possible", "chance") and len(known.possible) == domain.answers  # nothing to ask
                continue
            reply = work_out(kind, question.argument, known.chart, domain)
            assert judge(question, reply)
            said.append((kind, reply))
    assert 3 < said.count(("example", "none")) < 30  # answers that no input gets
    assert min(said.count(("possible", "yes")), said.count(("possible", "no"))) > 5
    assert 25 < said.count(("trigger_input", "none")) < 45  # charts without a trigger that is rare enough
