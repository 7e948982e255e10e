"""Examples are a function of (seed, i), and the renaming in the text is the renaming of the weights."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from weight_oracle.oracle.data import Collator, QuestionData, pick, pick_apart
from weight_oracle.oracle.model import ENCODERS
from weight_oracle.targets.stack import stack_targets
from weight_oracle.truth.canonical import behaviour_key, split_of
from weight_oracle.truth.domain import default_names
from weight_oracle.truth.facts import facts
from weight_oracle.truth.interpret import run_one
from weight_oracle.truth.parse import parse
from weight_oracle.zoo.build import build_zoo
from weight_oracle.zoo.lessons import with_chance
from weight_oracle.zoo.recipe import RECIPES, recipe_from_dict
from weight_oracle.zoo.store import open_zoo


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


@pytest.fixture(scope="module")
def people(model, population):
    return population(model)


def as_tuple(example) -> tuple:
    return tuple(part.tolist() if isinstance(part, np.ndarray) else part for part in vars(example).values())


def test_examples_are_a_function_of_seed_and_index(people, codec):
    data, again = QuestionData(people, codec, 60, seed=1), QuestionData(people, codec, 1000, seed=1)
    first = [as_tuple(data[i]) for i in range(60)]
    assert first == [as_tuple(again[i]) for i in reversed(range(60))][::-1]
    other = QuestionData(people, codec, 60, seed=2)
    assert sum(a == as_tuple(other[i]) for i, a in enumerate(first)) == 0


def test_chances_are_asked_about_where_some_target_has_one(people, codec):
    about = {codec.ids[word] for word in ("chance", "sampled", "sampling", "sample")}

    def asked(some) -> int:
        data = QuestionData(some, codec, 80, seed=1)
        return sum(not about.isdisjoint(data[i].ids) for i in range(80))

    first, *rest = people.facts
    recipe = replace(RECIPES["charts-chances"], domain=first.domain)
    chart = with_chance(first.chart, recipe, np.random.default_rng(0))
    assert asked(people) == 0 and asked(replace(people, facts=(facts(chart, first.domain), *rest))) > 60


def test_each_target_once_an_epoch(people, codec):
    n = len(people)
    data = QuestionData(people, codec, 2 * n, seed=0, others=0)
    order = [data[i].target for i in range(2 * n)]
    assert sorted(order[:n]) == sorted(order[n:]) == list(range(n)) and order[:n] != order[n:]


def test_batches_hold_targets_of_one_shape(people, codec):
    # 7 targets of a shape of their own, 2 of another, and the rest
    group = np.array([0] * 7 + [1] * 2 + [2] * (len(people) - 9))
    mixed = replace(people, groups=people.groups * 3, group=group, row=np.arange(len(people)))
    data = QuestionData(mixed, codec, 1000, seed=0, others=0, batch=3)
    rest = (len(people) - 9) // 3 * 3
    assert data.epoch == 9 + rest  # two targets are too few for a batch of their own, and join the seven
    order = np.array([data[i].target for i in range(2 * data.epoch)])
    for batch in order.reshape(-1, 3):
        assert len(set(np.maximum(group[batch], 1))) == 1
    assert len(set(order[: data.epoch])) == data.epoch and set(order[: data.epoch]) != set(order[data.epoch :])
    lonely = QuestionData(replace(mixed, group=np.array([0] + [1] * 7 + [2] * (len(people) - 8))), codec, 1000, seed=0, others=0, batch=3)
    assert 0 in [lonely[i].target for i in range(8 * lonely.epoch)]  # one target of its shape joins another shape's
    both = QuestionData(replace(mixed, group=np.array([0] * 2 + [1] * 2 + [2] * (len(people) - 4))), codec, 1000, seed=0, others=0, batch=4)
    assert any(set(both.population.group[[both[i + j].target for j in range(4)]]) == {0, 1} for i in range(0, both.epoch, 4))


def test_questions_are_packed_one_after_another_and_only_answers_are_labels(people, codec):
    data = QuestionData(people, codec, 100, seed=3, others=2)
    separator, eos = codec.ids["<sep>"], codec.ids["<eos>"]
    for example in (data[i] for i in range(100)):
        assert Counter(example.ids)[separator] == Counter(example.ids)[eos] == 3 and set(example.segment) == {0, 1, 2}
        for number in range(3):
            here = [i for i, s in enumerate(example.segment) if s == number]
            assert [example.place[i] for i in here] == list(range(len(here)))
            asked = [example.ids[i] for i in here].index(separator) + 1
            assert [example.labels[i] for i in here] == [-100] * asked + [example.ids[i] for i in here[asked:]]
    blind = np.mean([data[i].blind for i in range(100)])
    assert 0.02 <= blind <= 0.25
    assert not any(QuestionData(people, codec, 50, 3, blind=0.0)[i].blind for i in range(50))


def test_picks_learned_targets_of_one_split(zoo):
    for split in ("train", "validation", "test"):
        learned, everyone = pick(zoo, split), pick(zoo, split, learned=False)
        assert set(learned) <= set(everyone) and all(zoo.truths[i]["split"] == split for i in everyone)
        assert all(zoo.truths[i]["learned"] for i in learned)


def test_zoos_on_other_lengths_keep_their_splits_apart(nano_recipe, zoo, tmp_path):
    """What is held out on one range of lengths is no training chart on another, and no validation target behaves like a training one."""
    raw = json.loads(nano_recipe.read_text()) | {"name": "short", "seed": 3, "steps": [1], "shard_size": 300}
    build_zoo(recipe_from_dict(raw | {"domain": raw["domain"] | {"lengths": [2, 2]}}, ""), tmp_path / "short", 300)
    short = open_zoo(tmp_path / "short")
    short.truths[:] = [row | {"learned": True} for row in short.truths]
    alone = {split: pick(short, split) for split in ("train", "validation")}
    apart = {split: pick_apart(short, split, [zoo, short]) for split in alone}
    assert all(set(apart[split]) <= set(alone[split]) for split in alone) and 0 < len(apart["train"]) < len(alone["train"])
    assert {split_of(short.charts[i], zoo.recipe.domain) for i in alone["train"]} == {"train", "validation", "test"}
    assert all(split_of(short.charts[i], zoo.recipe.domain) == "train" for i in apart["train"])
    seen = {behaviour_key(zoo.charts[i], zoo.recipe.domain) for i in pick(zoo, "train")}
    assert not seen & {behaviour_key(short.charts[i], zoo.recipe.domain) for i in apart["validation"]}
    assert np.array_equal(pick_apart(short, "train", [short]), alone["train"])


@pytest.mark.parametrize("encoding", ["atoms", "chunk"])
def test_renamed_weights_are_those_of_a_target_that_follows_the_labelled_chart(zoo, codec, make_model, population, encoding):
    model = make_model(encoding=encoding)
    people, settings, domain = population(model), model.config.encoder_config, zoo.recipe.domain
    data = QuestionData(people, codec, 12, seed=7, others=1, blind=0.0)
    examples = [data[i] for i in range(12)]
    encoder = ENCODERS[encoding]
    batch = Collator(people, model.name_tokens(codec), 0)(examples)
    inputs, names = domain.enumerate(), default_names(domain.symbols, domain.answers)
    with torch.no_grad():
        tokens = model.weight_tokens(batch["atoms"], batch["names"])
    moved = 0
    for row, example in enumerate(examples):
        truth = zoo.truths[people.places[example.target]]
        target = zoo.target(truth["index"])
        # the same network under other names: what was token i is now token symbols[i], or S + answers[i]
        order = np.concatenate([example.symbols, domain.symbols + example.answers, domain.symbols + domain.answers + np.arange(2)])
        tensors = dict(target.tensors)
        for name in ("transformer.wte.weight", "lm_head.weight"):
            tensors[name] = tensors[name][np.argsort(order)]
        renamed = replace(target, tensors=tensors)
        with torch.no_grad():
            own = model.weight_tokens(encoder.prepare(stack_targets([renamed]), settings), batch["names"])
        torch.testing.assert_close(own[0, : tokens.shape[1]], tokens[row], rtol=1e-3, atol=1e-3)

        end = example.ids.index(codec.ids["<eos>"])
        said = parse(codec.decode([i for i in example.labels[: end + 1] if i >= 0]), names)
        agreed = lambda chart, network: (run_one(chart, inputs) == network.answers(inputs)).mean()  # noqa: E731
        assert agreed(said, renamed) == agreed(zoo.charts[people.places[example.target]], target) > 0.9
        moved += not np.array_equal(example.symbols, np.arange(domain.symbols))
    assert moved > 6


def test_without_renaming_slots_keep_their_names(people, codec):
    data = QuestionData(people, codec, 20, seed=1, rename=False)
    assert all(np.array_equal(data[i].symbols, np.arange(4)) and np.array_equal(data[i].answers, np.arange(3)) for i in range(20))
