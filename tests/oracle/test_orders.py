"""A target with its places in other orders: what is said of it then comes back in its own order."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from weight_oracle.evaluation.subjects import draw_questions, encode, under_views
from weight_oracle.evaluation.triggers import claims
from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.data import QuestionData, load_population, pick
from weight_oracle.oracle.generate import Reply
from weight_oracle.oracle.model import ENCODERS, WeightOracle, new_config
from weight_oracle.oracle.train import TrainConfig, new_oracle
from weight_oracle.oracle.views import PLAIN, VIEWS, View, as_seen, draw_views, guessed_in_orders, in_own_slots, in_view, views_of
from weight_oracle.targets.checkpoint import make_target
from weight_oracle.targets.stack import stack_targets
from weight_oracle.truth.automaton import equivalent
from weight_oracle.truth.canonical import split_of
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import rename, test_text, to_text
from weight_oracle.truth.parse import parse
from weight_oracle.truth.places import another_order, moved, moved_test
from weight_oracle.truth.sample import ChartDistribution, sample_chart
from weight_oracle.truth.triggers import read_trigger
from weight_oracle.truth.understand import usual_question
from weight_oracle.zoo.build import build_zoo
from weight_oracle.zoo.recipe import RECIPES
from weight_oracle.zoo.store import open_zoo

DOMAIN = Domain(4, 3, (4, 4))
PLACED = ChartDistribution(kinds=("has", "first", "last", "at", "pattern"), at=(2, 3), pattern=(2, 3))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """One block and two, by shards, of inputs of one length."""
    small = {"widths": (8,), "depths": (1, 2), "positions": (6,), "steps": (120, 60), "pool": 256, "checks": 64, "shard_size": 12}
    recipe = replace(RECIPES["charts-tiny-train"], domain=DOMAIN, lengthen=(1,), batch=32, splits=(), compiled=False, **small)
    folder = tmp_path_factory.mktemp("orders") / "zoo"
    build_zoo(recipe, folder, 4 * 12)
    return open_zoo(folder)


@pytest.fixture(scope="module")
def plain(zoo, codec) -> Oracle:
    return Oracle(loud(new_oracle(TrainConfig("", "", size="tiny"), [zoo], codec)), codec, {}, anyway=True)


@pytest.fixture(scope="module")
def guessing(zoo, plain, codec) -> Oracle:
    config = replace(plain.settings, places=True, refinements=2)
    torch.manual_seed(0)
    model = loud(WeightOracle(new_config(config, plain.model.backbone.config, pointer=plain.model.config.pointer)))
    assert model.refine is not None
    torch.nn.init.constant_(model.refine.present_out.bias, 20.0)  # a symbol is guessed at every place
    model.hints.weight.data *= 20  # and not the same at all
    return Oracle(model, codec, {}, anyway=True)


def loud(model: WeightOracle) -> WeightOracle:
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)) * (tensor.ndim > 1))
    return model.eval()


def of_depth(zoo, depth):
    found = [zoo.target(t["index"]) for t in zoo.truths if t["depth"] == depth]
    assert len(found) > 3
    return found


def in_order(target, order):
    tensors = {k: v.clone() for k, v in target.tensors.items()}
    tensors["transformer.wpe.weight"][1 : len(order) + 1] = tensors["transformer.wpe.weight"][1 + torch.tensor(order)]
    return make_target(target.config, tensors, target.names, target.domain.lengths)


def test_the_first_views_keep_the_order_and_the_others_the_ends():
    views = draw_views(VIEWS, 8, 4, 6)
    assert [replace(view, order=()) for view in views] == list(draw_views(VIEWS, 8, 4))
    assert all(view.order == () for view in views[:PLAIN]) and len({view.order for view in views[PLAIN:]}) > 1
    for view in views[PLAIN:]:
        assert sorted(view.order) == list(range(6)) and {view.order[0], view.order[-1]} == {0, 5}


def test_what_is_true_of_the_reordered_target_comes_back_as_what_is_true_of_it():
    rng, kinds = np.random.default_rng(0), set()
    for _ in range(60):
        chart = sample_chart(PLACED, DOMAIN, rng)
        kinds |= set(to_text(chart).split())
        view = replace(draw_views(2, 4, 3)[1], order=tuple(rng.permutation(4).tolist()))
        there = moved(rename(chart, view.symbols, view.answers), np.array(view.order))
        back = in_own_slots(view, "chart", to_text(there), DOMAIN)
        assert equivalent(parse(back), chart, DOMAIN)
        assert equivalent(parse(in_view(view, "chart", to_text(chart), DOMAIN)), there, DOMAIN)
        assert view.inverse.inverse == view
    assert {"pattern", "at", "first", "last"} <= kinds
    view = View((0, 1, 2, 3), (0, 1, 2), (3, 1, 0, 2))
    assert in_own_slots(view, "trigger_pattern", "pattern a b", DOMAIN) == "pattern . b . a"
    assert in_view(view, "trigger_pattern", "pattern . b . a", DOMAIN) == "pattern a b"
    assert in_own_slots(view, "trigger_pattern", "none", DOMAIN) == "none"
    assert in_own_slots(view, "trigger_pattern", "pattern a . . . b", DOMAIN) == "pattern a . . . b"  # of longer inputs
    cannot = "if a before b: say p else: say q"
    assert in_own_slots(view, "chart", cannot, DOMAIN) == cannot


def test_one_block_is_read_in_other_orders_and_two_are_not(zoo, plain):
    one, two = (plain.encode(of_depth(zoo, depth)[0]) for depth in (1, 2))
    assert one.views == draw_views(VIEWS, 4, 3, 4) and two.views == draw_views(VIEWS, 4, 3)
    batch = ENCODERS["atoms"].prepare(stack_targets([one.target]), plain.settings)
    assert views_of(plain.model, [batch], Domain(4, 3, (3, 4))) == draw_views(VIEWS, 4, 3)
    for number, view in enumerate(one.views[PLAIN:], PLAIN):
        other = ENCODERS["atoms"].prepare(stack_targets([in_order(one.target, view.order)]), plain.settings)
        under = as_seen(plain.model, other, plain.names, replace(view, order=()))
        assert torch.allclose(plain.model.weight_tokens(under, plain.names)[0], one.tokens[number], atol=1e-4)
    number = next(i for i, view in enumerate(one.views) if view.order not in ((), (0, 1, 2, 3)))
    moved_twice = plain.encode(in_order(one.target, one.views[number].order)).tokens[number]
    assert not torch.allclose(one.tokens[number], moved_twice, atol=1e-2)


def test_a_target_alone_is_read_as_among_others(zoo, plain, codec):
    places = np.array([i for i in range(len(zoo.truths)) if zoo.truths[i]["depth"] == 1])
    subjects = encode(plain.model, codec, zoo, places)
    asked = draw_questions(subjects, kinds=("chart",))[:3]
    for a, said in zip(asked, under_views(subjects, asked), strict=True):
        alone = plain.charts_said(plain.encode(zoo.target(zoo.truths[subjects.places[a.subject]]["index"])))
        assert [r.text for r in said] == [r.text for r in alone]


def test_guesses_in_other_orders_are_guesses_about_the_target(zoo, guessing, codec):
    target = of_depth(zoo, 1)[0]
    encoded, settings = guessing.encode(target), guessing.settings
    assert len(encoded.guessed) == 2 * VIEWS and encoded.views == draw_views(VIEWS, 4, 3)
    assert len(guessing.encode(of_depth(zoo, 2)[0]).guessed) == VIEWS
    assert guessing.replies(encoded, usual_question("trigger_pattern"))[VIEWS:] == [*encoded.guessed]
    # all that is guessed of the network with its positions permuted, put back by hand
    believed = parse("if pattern a . b: say p else: say q")
    batch = ENCODERS["atoms"].prepare(stack_targets([target]), settings)
    said = [Reply("pattern a . b", 0.9)]
    longer = guessed_in_orders(guessing.model, batch, guessing.names, encoded.views, [[Reply("pattern a . . . b", 0.9)]], DOMAIN)
    assert longer == guessed_in_orders(guessing.model, batch, guessing.names, encoded.views, [[Reply("none", 0.9)]], DOMAIN)
    found = guessed_in_orders(guessing.model, batch, guessing.names, encoded.views, [said], DOMAIN)[0]
    different = 0
    for number, (view, reply) in enumerate(zip(encoded.views, found, strict=True)):
        order = another_order(believed, 4, np.random.default_rng(number))
        assert {*order[[0, 2]]} == {0, 2}
        other = guessing.encode(in_order(target, order)).guessed[number]
        test = read_trigger(other.text)
        back = other.text if test is None else test_text(moved_test(test, np.argsort(order)))
        assert (reply.text, reply.probability) == (back, pytest.approx(other.probability, rel=1e-3))
        different += back != other.text
        assert view.order == ()
    assert different


def test_nothing_more_is_guessed_where_nothing_is(zoo, plain):
    batch = ENCODERS["atoms"].prepare(stack_targets(of_depth(zoo, 1)[:2]), plain.settings)
    assert guessed_in_orders(plain.model, batch, plain.names, draw_views(2, 4, 3), [(), ()], DOMAIN) == [(), ()]


def test_what_is_guessed_in_other_orders_counts_as_much_as_what_is_said(zoo, guessing, codec):
    places = np.array([i for i in range(len(zoo.truths)) if zoo.truths[i]["depth"] == 1])
    subjects = replace(encode(guessing.model, codec, zoo, places), found=())
    assert all(len(said) == 2 * VIEWS for said in subjects.guessed)
    sure = tuple((*said[:VIEWS], *[Reply("pattern a b c", 1.0)] * VIEWS * 3) for said in subjects.guessed)  # with enough of it, it decides
    said = claims(replace(subjects, guessed=sure))
    assert said.plain == said.tests and {test_text(test) for test in said.tests if test} == {"pattern a b c"}


def test_no_example_has_its_places_as_a_chart_of_the_test_split_of_other_inputs_would(zoo, plain, codec):
    places = np.array([i for i in pick(zoo, "train", learned=False) if zoo.truths[i]["depth"] == 1])
    population = load_population(zoo, ENCODERS["atoms"], plain.settings, places)
    other, found = replace(DOMAIN, lengths=(2, 4)), {}
    for clear in ((), (other,)):
        data = QuestionData(population, codec, 1, 0, reorder=1.0, clear=clear)
        known = [data._known(i, np.random.default_rng([i, j])) for i in range(len(population)) for j in range(12)]
        found[clear] = {split_of(facts.chart, other) for facts, order in known if order is not None}
    assert "test" in found[()] and found[other,] and "test" not in found[other,]
