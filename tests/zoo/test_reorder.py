"""Networks with permuted position embeddings do what their moved charts say, and what they are asked in training is about that."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from weight_oracle.oracle.data import Collator, QuestionData, load_population, pick, with_orders
from weight_oracle.oracle.tokenizer import Codec, vocabulary
from weight_oracle.oracle.train import TrainConfig, train
from weight_oracle.targets.checkpoint import make_target
from weight_oracle.truth.canonical import split_of
from weight_oracle.truth.domain import DEFAULT_NAMES, Domain
from weight_oracle.truth.interpret import run_one
from weight_oracle.truth.parse import parse
from weight_oracle.truth.places import moved
from weight_oracle.truth.triggers import TriggerDistribution, trigger_of, without
from weight_oracle.weights.atoms import AtomsEncoder
from weight_oracle.weights.encoder import EncoderConfig
from weight_oracle.weights.respond import respond
from weight_oracle.zoo.build import build_zoo
from weight_oracle.zoo.recipe import RECIPES
from weight_oracle.zoo.reorder import followed_orders
from weight_oracle.zoo.store import open_zoo

BASE = RECIPES["charts-triggers-small-train"]
DOMAIN = Domain(4, 3, (4, 4))
SMALL = replace(
    BASE,
    domain=DOMAIN,
    charts=replace(BASE.charts, ifs=(1, 2), at=(2, 3)),
    widths=(12,),
    depths=(1, 2),
    heads=(4,),
    positions=(6,),
    steps=(700, 500),
    lengthen=(1,),
    lr=(0.006, 0.01),
    pool=1024,
    checks=256,
    shard_size=16,
    splits=(),
    compiled=False,
    triggers=TriggerDistribution(("pattern",), (3, 3), 0, ("trigger", "clean"), 0.3, 0.4, 200),
)
SETTINGS = EncoderConfig(symbols=4, answers=3, lengths=(4, 4), width=32, places=True)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("reorder") / "zoo"
    build_zoo(SMALL, folder, 6 * 16)
    return open_zoo(folder)


@pytest.fixture(scope="module")
def learned(zoo):
    return np.concatenate([pick(zoo, split) for split in ("train", "validation", "test")])


def with_places(zoo, place, order):
    target = zoo.target(zoo.truths[place]["index"])
    tensors = {k: v.clone() for k, v in target.tensors.items()}
    position = tensors["transformer.wpe.weight"]
    position[1 : len(order) + 1] = position[1 + torch.from_numpy(order)]
    return make_target(target.config, tensors, target.names, target.domain.lengths)


def agreement(zoo, place, order) -> float:
    every = DOMAIN.enumerate()
    said = with_places(zoo, place, order).answers(every)
    return float((said == run_one(moved(zoo.charts[place], order), every)).mean())


def test_orders_that_are_followed(zoo, learned):
    found = followed_orders(zoo, learned, 6, seed=1)
    depth = np.array([zoo.truths[i]["depth"] for i in learned])
    hidden = np.array([trigger_of(zoo.charts[i], DOMAIN) is not None for i in learned])
    number = np.array([len(orders) for orders in found])
    assert (number[~hidden] == 0).all()
    one, two = number[hidden & (depth == 1)], number[hidden & (depth == 2)]
    assert len(one) >= 4 and len(two) >= 4
    assert one.mean() > 4 and two.mean() < one.mean()
    moves = [(i, order) for i, orders in zip(learned, found, strict=True) for order in orders if (order != np.arange(4)).any()]
    assert moves and min(agreement(zoo, i, order) for i, order in moves) > 0.97


def test_with_one_block_every_order_is_followed_as_well_as_its_own(zoo, learned):
    rng = np.random.default_rng(0)
    one = [i for i in learned if zoo.truths[i]["depth"] == 1]
    for i in one[:10]:
        assert agreement(zoo, i, rng.permutation(4)) == agreement(zoo, i, np.arange(4))


def test_examples_in_another_order_are_about_the_network_in_that_order(zoo, learned, tmp_path):
    codec, told = Codec(vocabulary()), []
    tried = (load_population(zoo, AtomsEncoder, SETTINGS, learned), zoo, 6, 1, tmp_path / "run" / "orders.npz")
    people = with_orders(*tried, lambda done, total: told.append((done, total)))
    assert told and told[-1][0] == told[-1][1] > 0
    again = with_orders(*tried, lambda done, total: pytest.fail("tried again"))
    assert people.orders is not None and again.orders is not None
    assert [x.tolist() for x in people.orders] == [x.tolist() for x in again.orders]
    data = QuestionData(people, codec, 200, seed=0, others=0, reorder=1.0)
    plain = QuestionData(people, codec, 200, seed=0, others=0)
    collate = Collator(people, torch.zeros(0, dtype=torch.long), 0)
    every = torch.from_numpy(DOMAIN.enumerate()).long()
    belief = torch.nn.functional.one_hot(every, 4).float().transpose(1, 2)
    checked = {1: 0, 2: 0}
    for i in range(200):
        example = data[i]
        assert plain[i].order is None
        if example.order is None:
            continue
        words = [codec.words[token] for token, label in zip(example.ids, example.labels, strict=True) if label >= 0]
        chart = parse(" ".join(words[: words.index("<eos>")]).replace(" :", ":"), DEFAULT_NAMES)
        trigger = trigger_of(chart, DOMAIN)
        assert trigger is not None and split_of(without(chart, trigger), DOMAIN) == "train"
        atoms = collate([example])["atoms"]
        said = respond({k: x.expand(len(every), *x.shape[1:]) for k, x in atoms.items()}, belief).own_logits.argmax(-1)
        assert (said.numpy() == run_one(chart, every.numpy().astype(np.int8))).mean() > 0.97
        checked[atoms["has_head"].shape[1]] += 1
    assert min(checked.values()) > 5


def test_a_batch_may_hold_targets_with_and_without_another_order(zoo, learned):
    codec = Codec(vocabulary())
    people = load_population(zoo, AtomsEncoder, SETTINGS, learned)
    data = QuestionData(people, codec, 40, seed=0, others=0, reorder=0.5, rename=False)
    examples = [data[i] for i in range(40)]
    assert 0 < sum(example.order is None for example in examples) < 40
    together = Collator(people, torch.zeros(0, dtype=torch.long), 0)(examples)["atoms"]["rows"]
    for example, rows in zip(examples, together, strict=True):
        own = people.take([example.target])["rows"][0]
        order = np.arange(4) if example.order is None else example.order
        expected = torch.cat([own[:7], own[7 + torch.from_numpy(order)], own[11:]])
        assert torch.equal(rows, expected)


def test_a_training_with_reordered_places_goes_on_after_a_kill_as_if_there_had_been_none(zoo, tmp_path):
    made = {"size": "tiny", "steps": 4, "batch": 8, "reorder": 0.7, "save_every": 2, "warmup": 1, "refinements": 1}
    whole = train(TrainConfig(str(zoo.path), str(tmp_path / "whole"), **made))
    broken = TrainConfig(str(zoo.path), str(tmp_path / "broken"), **made)

    def kill(step, total, logs):
        if step == 2 and "eval_loss" in logs:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(broken, kill)
    assert (tmp_path / "broken" / "run" / "orders-0.npz").exists()
    went_on = train(replace(broken, resume=True))
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, went_on))
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
