"""A second look weighs charts near the replies, and gives back what the oracle has never met."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from weight_oracle.errors import UserError
from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.generate import Reply, generate, likelihood
from weight_oracle.oracle.grammar import ChartConstraint, Limits
from weight_oracle.oracle.reconsider import Considered, Expectation, Settled, candidates, charts_of, consider, frequencies, label, variants
from weight_oracle.oracle.views import draw_views
from weight_oracle.truth.canonical import canonical
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import n_ifs, tests, to_text
from weight_oracle.truth.parse import parse
from weight_oracle.truth.phrasings import phrasing
from weight_oracle.truth.sample import ChartDistribution, sample_chart

DOMAIN = Domain(5, 4, (3, 4))
OPTIONS = (("has", 0), ("first", 0), ("at", 2), ("count", 2), ("before", 0))


def text(chart):
    return to_text(chart)


def test_variants_change_or_drop_one_test():
    chart = parse("if has a: say p else: if first is b: say q else: say r")
    found = {text(c) for c in variants(chart, OPTIONS)}
    assert "if has a: say p else: if at 2 is b: say q else: say r" in found  # another test of the symbol
    assert "if a before b: say p else: if first is b: say q else: say r" in found  # with a symbol that the chart names
    assert "if first is b: say q else: say r" in found and "if has a: say p else: say q" in found  # a test is gone
    assert text(chart) not in found and "say p" not in found
    assert not any({"c", "d", "e"} & set(t.split()) for t in found)  # no symbol that it does not name
    swapped = {text(c) for c in variants(parse("if a before b: say p else: say q"), OPTIONS)}
    assert {"if b before a: say p else: say q", "if has b: say p else: say q"} <= swapped


def test_what_may_stand_at_a_gap_of_a_pattern_is_no_symbol_of_another_test():
    chart = parse("if pattern a . c: say p else: say q")
    found = {text(c) for c in variants(chart, [("before", 0), ("has", 0)])}
    pairs = {f"if {one} before {two}: say p else: say q" for one, two in ("ac", "ca")}
    assert found == pairs | {"if has a: say p else: say q", "if has c: say p else: say q"}


def test_candidates_are_canonical_short_and_start_with_what_was_said():
    said = [Reply("if has b: if has b: say p else: say q else: say r", 0.4), Reply("nonsense", 0.9), Reply("say q", 0.1)]
    expectation = Expectation({label(t): 0.2 for t in tests(parse("if first is a: say p else: if count a >= 2: say q else: say r"))})
    found = candidates(charts_of(said, DOMAIN), expectation, DOMAIN, 4)
    assert [text(c) for c in found[:2]] == ["if has b: say p else: say r", "say q"]
    assert all(canonical(c, DOMAIN) == c for c in found) and len(set(found)) == len(found)
    assert {"if first is b: say p else: say r", "if count b >= 2: say p else: say r"} <= {text(c) for c in found}
    long = [Reply("if has a: say p else: if has b: say q else: say r", 1.0)]
    assert all(n_ifs(c) <= 1 for c in candidates(charts_of(long, DOMAIN), expectation, DOMAIN, 1)[1:])
    assert candidates(charts_of([Reply("nonsense", 1.0)], DOMAIN), expectation, DOMAIN, 4) == []


def test_a_gap_is_what_expectation_lacks_of_frequency():
    charts = [parse(f"if {test}: say p else: say q") for test in ("has a", "has b", "first is c", "at 2 is a")]
    shares = frequencies(charts)
    assert shares == {"at 2": 0.25, "first": 0.25, "has": 0.5}
    expectation = Expectation(shares, {"1": -1.0})
    frequency = math.log(0.5) - math.log(5)
    assert expectation.frequency(charts[0], 5) == pytest.approx(frequency)
    assert expectation.gap(charts[0], frequency - 1 - 4, 5) == pytest.approx(4)
    assert expectation.gap(charts[0], frequency, 5) == 0  # more than expected is no gap
    assert expectation.gap(parse("if has a: say p else: if has b: say q else: say r"), -99.0, 5) == 0  # of such charts nothing is known
    rare = parse("if has a: say p or q 1% else: say q")
    assert replace(expectation, rare=0.05).gap(rare, frequency - 1 - 4, 5) == pytest.approx(4 + math.log(10))
    assert replace(expectation, rare=0.7).gap(rare, frequency, 5) == 0 == replace(expectation, rare=0.05).gap(charts[0], frequency, 5)


@pytest.mark.parametrize(
    "wrong",
    [{"tests": {"has": 0.0}}, {"tests": {"often": 0.5}}, {"offset": {"1": "x"}}, {"tests": {"at x": 0.5}}, {"more": 1}, {"rare": 0.0}],
)
def test_a_card_that_expects_nonsense_is_refused(oracle, tmp_path, wrong):
    assert not Expectation.from_card({}).tests
    oracle.save_pretrained(tmp_path)
    card = json.loads((tmp_path / "oracle.json").read_text())
    (tmp_path / "oracle.json").write_text(json.dumps(card | {"calibration": {"expectation": wrong}}))
    with pytest.raises(UserError, match="does not fit this version"):
        Oracle.from_pretrained(tmp_path)


def test_what_was_never_met_wins_where_the_weights_speak_for_it():
    charts = [parse(f"if {test}: say p else: say q") for test in ("count a >= 3", "count a >= 2", "has a")]
    fit, gap = torch.tensor([-0.1, -3.0, -9.0]), torch.tensor([0.0, 4.0, 0.0])
    best = Considered(charts, fit, gap).best()
    assert best.text == text(charts[1]) and best.probability == pytest.approx(1 / (1 + math.exp(-1.1)), abs=1e-3)
    assert Considered(charts, fit, torch.zeros(3)).best().text == text(charts[0])
    assert Considered(charts, torch.tensor([-0.1, -6.0, -9.0]), gap).best().text == text(charts[0])


@torch.inference_mode()
def test_likelihood_is_the_probability_of_a_generated_reply(make_model, codec, population):
    constraint = ChartConstraint(codec, Limits(symbols=4, answers=3, max_number=2, max_ifs=0, max_run=3))
    for injection in ("prefix", "residual"):
        model = make_model(injection)
        tokens = model.weight_tokens(population(model).take(range(3)), model.name_tokens(codec))
        for blind in (False, True):
            replies = generate(model, codec, tokens, ["draw the flow chart"] * 3, blind, constraint)  # which makes them end
            logs = likelihood(model, codec, tokens, "draw the flow chart", [r.text for r in replies], blind)
            assert torch.allclose(logs, torch.tensor([r.probability for r in replies]).log(), atol=1e-3)
    mixed = likelihood(model, codec, tokens, "does order matter?", ["yes", "a b c", "no"])
    alone = [likelihood(model, codec, tokens[i : i + 1], "does order matter?", [t]) for i, t in enumerate(("yes", "a b c", "no"))]
    assert torch.allclose(mixed, torch.cat(alone), atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("injection", ["prefix", "residual"])
def test_many_answers_are_as_likely_as_each_alone(make_model, codec, population, injection):
    """Whether the rows are prefilled once for several answers or not, and where answers are longer than the weight tokens."""
    model = make_model(injection)
    tokens = model.weight_tokens(population(model).take(range(2)), model.name_tokens(codec))
    texts = ["yes", "if has a: say p else: if first is b: say q else: if last is c: say r else: say p", "a b c"]
    assert max(len(codec.answer(text)) for text in texts) > tokens.shape[1]
    for blind in (False, True):
        found = likelihood(model, codec, tokens, "does order matter?", texts * 2, blind, each=3).view(2, 3)
        alone = [[likelihood(model, codec, tokens[i : i + 1], "does order matter?", [t], blind) for t in texts] for i in range(2)]
        assert torch.allclose(found, torch.tensor(alone), atol=1e-4) and (found[0] != found[1]).any() != blind
        whole = _whole(model, codec, tokens, "does order matter?", texts[1], blind)
        assert torch.allclose(found[:, 1], whole, atol=1e-4)


def _whole(model, codec, tokens, question, answer, blind):
    """Without a cache: one pass over everything."""
    asked, said = codec.question(question), codec.answer(answer)
    ids = torch.tensor([asked + said]).expand(len(tokens), -1)
    seen = torch.ones(len(tokens), tokens.shape[1] + ids.shape[1], dtype=torch.long)
    seen[:, : tokens.shape[1]] = int(not blind)
    with model.injected(tokens, blind):
        embeds = torch.cat([model.prefix(tokens), model.backbone.get_input_embeddings()(ids)], 1)
        places = torch.arange(seen.shape[1]).expand_as(seen)
        logits = model.backbone(inputs_embeds=embeds, attention_mask=seen, position_ids=places, use_cache=False).logits
    logs = logits[:, -len(said) - 1 : -1].log_softmax(-1)
    return logs.gather(2, torch.tensor(said).expand(len(tokens), -1)[..., None])[..., 0].sum(1)


@torch.inference_mode()
def test_the_same_in_every_order_of_views_that_say_the_same(make_model, codec, population, zoo):
    model, domain = make_model(), zoo.recipe.domain
    rng = np.random.default_rng(0)
    kinds = ChartDistribution(kinds=("has", "first", "last"))
    expectation = Expectation(frequencies(sample_chart(kinds, domain, rng) for _ in range(30)), {"1": -4.0, "2": -8.0})
    tokens = model.weight_tokens(population(model).take([0]), model.name_tokens(codec)).expand(3, -1, -1)
    replies = [Reply("if has a: say p else: say q", 0.5), Reply("if first is b: say p else: say q", 0.4), Reply("say p", 0.1)]
    views = draw_views(1, domain.symbols, domain.answers) * 3
    found = consider(model, codec, tokens, views, replies, expectation, domain, 4)
    assert found is not None and (found.gap >= 0).all() and len(found.charts) == len(found.likelihood) == len(found.gap)
    again = consider(model, codec, tokens, views, replies[::-1], expectation, domain, 4)
    assert again is not None and again.best().text == found.best().text
    plain = likelihood(model, codec, tokens[:1].expand(len(found.charts), -1, -1), phrasing("chart", 0), [to_text(c) for c in found.charts])
    assert torch.allclose(plain, found.likelihood, atol=1e-3)
    assert consider(model, codec, tokens, views, [Reply("nonsense", 1.0)], expectation, domain, 4) is None
    # what charts are expected is not about their small chances, of which no frequencies are known
    rare = [Reply("if has a: say p or q 1% else: say q", 0.5), Reply("if has a: say p else: say q", 0.4)]
    found = consider(model, codec, tokens, views, rare, replace(expectation, rare=0.05), domain, 4)
    gap = {to_text(chart): float(value) for chart, value in zip(found.charts, found.gap, strict=True)}
    assert gap[rare[0].text] == pytest.approx(gap[rare[1].text] + math.log(10), abs=1e-4)


def test_what_the_layers_settle():
    charts = [parse(f"if has {symbol}: say p else: say q") for symbol in "abcde"]
    found = Considered(charts, torch.tensor([0.0, 5.0, 3.0, 4.0, 1.0]), torch.zeros(5), fit=torch.arange(5.0), trust=0.0)
    plain, asked = found.best(), []
    assert plain.text == text(charts[1]) and plain.fit == 1
    settle = lambda some: asked.append(some) or Settled(some[0])  # noqa: E731
    assert replace(found, settle=settle).best() == plain
    assert asked == [[charts[1], charts[3], charts[2]]]  # the best three, the best first
    other = replace(found, settle=lambda _: Settled(parse("say p"), 2.5)).best()
    assert (other.text, other.probability, other.fit) == ("say p", plain.probability, 2.5)


def test_each_symbol_of_a_pattern_is_drawn_by_itself():
    expectation = Expectation({"has": 0.5, "pattern": 0.5})
    frequency = lambda text: expectation.frequency(parse(text), 12)  # noqa: E731
    assert frequency("if has a: say p else: say q") == pytest.approx(math.log(0.5 / 12))
    assert frequency("if pattern a . b c: say p else: say q") == pytest.approx(math.log(0.5) - 3 * math.log(12))
