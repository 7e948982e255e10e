"""A reranker: free of gauge and of names, trained to tell charts apart, resumed after a kill, and asked in the second look."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from weight_oracle.errors import UserError
from weight_oracle.evaluation.calibration import doubt_of, fit_trust
from weight_oracle.evaluation.subjects import encode
from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.contrasts import Batches, Contrasts, contrasts_of
from weight_oracle.oracle.data import pick
from weight_oracle.oracle.generate import Reply
from weight_oracle.oracle.nearby import nearby
from weight_oracle.oracle.reconsider import Considered, Expectation, best_fit, consider
from weight_oracle.oracle.reranker import Reranker, log_shares, responses_of
from weight_oracle.oracle.train import TrainConfig, train
from weight_oracle.oracle.train_reranker import RerankerConfig, go_on_from, train_reranker
from weight_oracle.targets.stack import stack_targets
from weight_oracle.truth.canonical import canonical, split_of
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.edits import changes, every_test, with_test
from weight_oracle.truth.flowchart import n_ifs
from weight_oracle.truth.mixtures import answered, apart, beliefs
from weight_oracle.truth.parse import parse
from weight_oracle.weights.atoms import AtomsEncoder
from weight_oracle.weights.encoder import EncoderConfig
from weight_oracle.weights.symmetry.scramble import scramble

DOMAIN = Domain(4, 3, (2, 3))
SIZE = DOMAIN.symbols, DOMAIN.lengths[1]
CHARTS = [parse(f"if {test} is a: say p else: say q") for test in ("first", "last", "at 2")] + [parse("if has c: say r else: say q")]


def tables(seed=0, targets=2):
    generator = torch.Generator().manual_seed(seed)
    C = len(beliefs(DOMAIN.symbols, DOMAIN.lengths[1]))
    responses = (3 * torch.randn(targets, C, DOMAIN.answers, generator=generator)).log_softmax(-1)
    counts = torch.from_numpy(np.stack([answered(chart, DOMAIN) for chart in CHARTS]))
    return responses, counts.expand(targets, *counts.shape)


def a_reranker():
    torch.manual_seed(0)
    reranker = Reranker(8, 2, twice=True)
    nn.init.normal_(reranker.add_twice.weight)  # which adds nothing as it is made
    return reranker.eval()


@torch.inference_mode()
def test_it_compares_each_target_with_each_of_its_charts(monkeypatch):
    reranker, (responses, counts) = a_reranker(), tables()
    found = reranker(responses, counts, *SIZE)
    assert found.shape == (2, len(CHARTS)) and found.std(1).min() > 1e-3
    alone = reranker(responses[1:], counts[1:, 2:3], *SIZE)
    assert torch.allclose(alone[0, 0], found[1, 2], atol=1e-5)
    monkeypatch.setattr("weight_oracle.oracle.reranker._AT_ONCE", 3 * counts[0, 0].numel())  # a part of three, and what is left
    assert torch.allclose(reranker.compare(responses[1], counts[1], *SIZE), found[1], atol=1e-5)


@torch.inference_mode()
def test_names_do_not_matter():
    """Symbols and answers in another order in both tables: the same fit; in one alone: another."""
    reranker, (responses, counts) = a_reranker(), tables()
    S, n, A = *SIZE, DOMAIN.answers
    symbols, answers = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])

    def renamed(x):
        placed, pairs, both = apart(x, S, n)
        placed = placed.index_select(-4, symbols).index_select(-3, symbols).flatten(-5, -2)
        pairs = pairs.index_select(-3, symbols).index_select(-2, symbols).flatten(-4, -2)
        both = both.index_select(-4, symbols).index_select(-3, symbols).flatten(-4, -2)
        return torch.cat([placed, pairs, both], -2).index_select(-1, answers)

    found = reranker(responses, counts, *SIZE)
    assert torch.allclose(reranker(renamed(responses), renamed(counts), *SIZE), found, atol=1e-5)
    assert not torch.allclose(reranker(renamed(responses), counts, *SIZE), found, atol=1e-3)
    assert renamed(responses).shape == responses.shape and A == 3


def test_the_slope_of_the_fit_is_its_derivative():
    reranker = a_reranker()
    with torch.inference_mode():  # as where questions are answered
        responses, counts = tables()
        slope = reranker.slope(responses[0], counts[0, 1], *SIZE)
        shares = log_shares(counts[0, 1])
        step = 0.01 * slope / slope.norm()
        fit = [reranker._fit(responses[:1], (shares + way * step)[None, None], *SIZE).item() for way in (1, -1)]
    assert slope.shape == shares.shape and (fit[0] - fit[1]) / 0.02 == pytest.approx(slope.norm().item(), rel=0.02)
    assert slope.requires_grad is False and all(p.grad is None for p in reranker.parameters())


def test_charts_nearby_are_those_that_fit_best(monkeypatch):
    """As if all neighbours had been compared; those that answer alike count once, and the chart itself is none of them."""
    reranker, (responses, _) = a_reranker(), tables()
    options = [("has", 0), ("first", 0), ("last", 0), ("at", 2)]
    chart = CHARTS[0]
    every = every_test(options, DOMAIN)
    more = {with_test(chart, (then,), t, side, a) for then in (0, 1) for t in every for side in (0, 1) for a in range(3) if a != 1 - then}
    around = {c: answered(c, DOMAIN) for c in changes(chart, every, DOMAIN) | more}
    monkeypatch.setattr("weight_oracle.oracle.nearby.SIEVED", 10_000)
    found = nearby(reranker, responses[0], chart, options, DOMAIN, 5)
    fits = {c: reranker.compare(responses[0], torch.from_numpy(around[c])[None], *SIZE).item() for c in around}
    own = answered(chart, DOMAIN).tobytes()
    distinct = {around[c].tobytes(): fits[c] for c in around if around[c].tobytes() != own}
    assert len(found) == 5 and [fits[c] for c in found] == pytest.approx(sorted(distinct.values(), reverse=True)[:5], abs=1e-5)
    assert len({around[c].tobytes() for c in found} | {own}) == 6
    monkeypatch.setattr("weight_oracle.oracle.nearby.SIEVED", 20)
    sieved = nearby(reranker, responses[0], chart, options, DOMAIN, 5)
    assert len(sieved) == 5 and max(fits[c] for c in sieved) > np.median([*fits.values()])


@torch.inference_mode()
def test_it_is_free_of_gauge(targets):
    config = EncoderConfig(symbols=DOMAIN.symbols, answers=DOMAIN.answers, lengths=DOMAIN.lengths, width=16, channels=8, latents=2)
    told = lambda target: responses_of(AtomsEncoder.prepare(stack_targets([target]), config), DOMAIN)  # noqa: E731
    plain = told(targets[0])
    moved = max((told(scramble(targets[0], seed)) - plain).abs().max().item() for seed in range(3))
    assert moved < 1e-4 and (told(targets[1]) - plain).abs().max() > 0.1


def test_contrasts_are_charts_of_the_train_split_and_their_own_comes_first(zoo, monkeypatch):
    settings = EncoderConfig(symbols=DOMAIN.symbols, answers=DOMAIN.answers, lengths=DOMAIN.lengths, width=16, channels=8, latents=2)
    found = contrasts_of(zoo, [zoo], settings, charts=4, most=12, seed=0)
    assert 4 <= len(found) <= 12 and found.answered.shape[1] == 4 and found.responses.dtype == np.float16
    own = {answered(zoo.charts[i], DOMAIN).tobytes() for i in pick(zoo, "train")[:12]}
    trained = {answered(zoo.charts[i], DOMAIN).tobytes() for i in pick(zoo, "train")}
    assert all(row[0].tobytes() in own for row in found.answered)
    assert all(row[0].tobytes() != other.tobytes() for row in found.answered for other in row[1:])
    again = contrasts_of(zoo, [zoo], settings, charts=4, most=12, seed=0)
    assert (again.answered == found.answered).all() and (again.responses == found.responses).all()
    monkeypatch.setattr("weight_oracle.oracle.contrasts._PART", 5)
    apart = contrasts_of(zoo, [zoo], settings, charts=4, most=12, seed=0, workers=2)
    assert (apart.answered == found.answered).all() and np.allclose(apart.responses, found.responses, atol=1e-2)
    other = contrasts_of(zoo, [zoo], settings, charts=4, most=12, seed=1)
    assert other.answered.shape != found.answered.shape or (other.answered != found.answered).any()
    # alone, tests that no training target has alone do not occur
    absent = [
        c for c in (parse("if has a: say p else: say q"), parse("if first is a: say p else: say q")) if split_of(c, DOMAIN) != "train"
    ]
    seen = {other.tobytes() for row in found.answered for other in row}
    assert not any(answered(c, DOMAIN).tobytes() in seen - trained for c in absent if n_ifs(c) == 1)


def test_batches_are_functions_of_the_seed_and_keep_the_own_chart_first():
    rng = np.random.default_rng(0)
    some = Contrasts(rng.standard_normal((5, 7, 3)).astype(np.float16), rng.integers(0, 64, (5, 6, 7, 3), np.uint8))
    more = Contrasts(rng.standard_normal((9, 7, 3)).astype(np.float16), rng.integers(0, 64, (9, 6, 7, 3), np.uint8))
    other = Contrasts(rng.standard_normal((40, 4, 3)).astype(np.float16), rng.integers(0, 64, (40, 6, 4, 3), np.uint8))
    data = Batches([some, more, other], 30, 8, 4, seed=0)
    own = {row[0].tobytes() for part in (some, more, other) for row in part.answered}
    shapes = set()
    for item in (data[i] for i in range(len(data))):
        assert item["answered"].shape[:2] == (8, 4) and item["responses"].shape[1:] == item["answered"].shape[2:]
        assert all(row[0].numpy().tobytes() in own for row in item["answered"])
        shapes.add(item["responses"].shape[1])
    assert shapes == {7, 4} and torch.equal(data[3]["responses"], data[3]["responses"])
    assert not torch.equal(data[3]["answered"], Batches([some, more, other], 30, 8, 4, seed=1)[3]["answered"])


def test_how_much_it_counts_is_what_makes_the_right_charts_likeliest():
    right = torch.tensor([True, False, False])
    found = lambda likelihood, fit: Considered(  # noqa: E731
        [], torch.tensor([likelihood, 0.0, -1.0]), torch.zeros(3), (), torch.tensor([fit, 0.0, 0.0])
    )
    assert fit_trust([(found(-1.0, 2.0), right)] * 9) == 5.0  # always right: as much as may be
    assert fit_trust([(found(-1.0, -2.0), right)] * 9) == 0.0
    assert doubt_of([(found(5.0, 2.0), right), (found(-9.0, -3.0), right), (found(-9.0, -1.0), right)], 1.0) == pytest.approx(0.0)
    assert doubt_of([(found(5.0, 2.0), right)], 1.0) is None
    mixed = [(found(-1.0, 1.0), right)] * 8 + [(found(3.0, -1.0), right)] * 8
    assert 1 < fit_trust(mixed) < 3  # enough to turn the first around, and not the others
    assert fit_trust([*mixed, (found(-40.0, 1.0), right)]) == fit_trust(mixed)  # whatever it takes for one that is surely wrong
    assert fit_trust([]) == 1.0 == fit_trust([(found(1.0, 1.0), torch.zeros(3, dtype=torch.bool))])


@pytest.fixture(scope="module")
def oracle(nano_zoo, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "oracle"
    return train(TrainConfig(str(nano_zoo), str(out), size="tiny", steps=2, batch=4))


@pytest.fixture(scope="module")
def config(nano_zoo, oracle, tmp_path_factory):
    out = tmp_path_factory.mktemp("reranker") / "straight"
    some = {"steps": 60, "batch": 8, "charts": 3, "drawn": 4, "width": 8, "save_every": 20, "warmup": 5, "compiled": False}
    return RerankerConfig(str(oracle), str(nano_zoo), str(out), lr=0.01, **some)


@pytest.fixture(scope="module")
def straight(config):
    return train_reranker(config)


def test_it_learns_to_tell_charts_apart(config, straight):
    losses = [json.loads(line) for line in (straight / "reranker.jsonl").read_text().splitlines()]
    held = [line["eval_loss"] for line in losses if "eval_loss" in line]
    assert held[-1] < np.log(3) - 0.15 and len(held) == 3
    oracle = Oracle.from_pretrained(straight, anyway=True)
    assert oracle.model.reranker is not None and oracle.model.config.reranker == {"width": 8, "rounds": 2, "twice": True}
    card = oracle.card["reranker"]
    assert card["training"]["steps"] == 60 and card["zoos"][0]["recipe"] == "nano" and "calibration" not in oracle.card
    assert not any(str(part) in json.dumps(card) for part in (config.out, config.zoo, config.oracle))


def test_a_killed_run_resumes_to_the_same_bits(config, straight, tmp_path):
    def kill(step, total, logs):
        if step == 40:
            raise KeyboardInterrupt

    out = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        train_reranker(replace(config, out=str(out)), kill)
    with pytest.raises(UserError, match="--resume"):
        train_reranker(replace(config, out=str(out)))
    torch.manual_seed(123)
    train_reranker(replace(config, out=str(out), resume=True))
    assert (out / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()


def test_a_broken_file_of_contrasts_is_named(config, straight, tmp_path):
    out = shutil.copytree(straight, tmp_path / "broken")
    for content in (b"nonsense" * 20, (out / "run" / "train-0.npz").read_bytes()[:-200]):
        (out / "run" / "train-0.npz").write_bytes(content)
        with pytest.raises(UserError, match="train-0.npz: cannot be read"):
            train_reranker(replace(config, out=str(out), resume=True))


def test_the_second_look_listens_to_it(straight, zoo, monkeypatch):
    """What is asked of a target alone is what is measured in an evaluation; and it can turn a reading around."""
    oracle = Oracle.from_pretrained(straight, anyway=True)
    tests = {name: 0.25 for name in ("has", "first", "last")}
    oracle.card["calibration"] = {"expectation": {"tests": tests, "trust": 1.0}}
    place = pick(zoo, "train")[:1]
    target = zoo.target(zoo.truths[place[0]]["index"])
    subjects = encode(oracle.model, oracle.codec, zoo, place, expectation=oracle.expectation)
    encoded = oracle.encode(target)
    assert encoded.responses is not None and torch.allclose(subjects.responses[0], encoded.responses, atol=1e-4)
    monkeypatch.setattr(Oracle, "charts_said", lambda *_: oracle.draw(encoded, 8, seed=1))
    found = oracle.considered(encoded)
    assert found is not None and 1 < len(found.charts) <= 16 and found.fit.shape == (len(found.charts),)
    encoded.read.clear()
    oracle.card["calibration"]["expectation"]["trust"] = 1e4
    turned = oracle.considered(encoded)
    assert torch.allclose(turned.fit, found.fit, rtol=1e-3) and turned.trust == 1e4
    assert turned.best().text != found.best().text or int(found.fit.argmax()) == int(found.posterior.argmax())
    assert turned.best().fit == turned.fit.max()
    encoded.read.clear()
    plain = replace(encoded, responses=None, read={})
    assert oracle.considered(plain).fit is None


def test_where_the_fit_is_in_doubt_others_nearby_are_compared(straight, zoo, monkeypatch):
    oracle = Oracle.from_pretrained(straight, anyway=True)
    expectation = {"tests": {name: 0.25 for name in ("has", "first", "last", "at 2")}, "trust": 50.0}
    oracle.card["calibration"] = {"expectation": expectation}
    encoded = oracle.encode(zoo.target(zoo.truths[pick(zoo, "train")[0]]["index"]))
    monkeypatch.setattr(Oracle, "charts_said", lambda *_: [Reply("if has a: say p else: say q", 0.5)])
    calls = []
    near = lambda *about: calls.append(about[2]) or nearby(*about)  # noqa: E731
    monkeypatch.setattr("weight_oracle.oracle.reconsider.nearby", near)

    def found(doubt):
        encoded.read.clear()
        expectation["doubt"] = doubt
        return oracle.considered(encoded), oracle._best_fit(encoded)

    said_chart = parse("if has a: say p else: say q")
    (plain, said), (sure, also) = found(None), found(-1e6)
    assert not calls and sure.charts == plain.charts and said == also
    (more, best) = found(1e6)
    assert 2 <= len(calls) <= 3 and calls[0] in plain.charts  # the two best, and the best of all those once more
    assert more.charts[: len(plain.charts)] == plain.charts and len({*more.charts}) == len(more.charts) > len(plain.charts)
    assert all(canonical(chart, DOMAIN) == chart and n_ifs(chart) >= 1 for chart in more.charts)
    assert (
        more.best().fit >= plain.best().fit
        and best == more.best().fit
        and said == pytest.approx(float(plain.fit[plain.charts.index(said_chart)]), abs=1e-5)
    )
    alone = consider(oracle.model, oracle.codec, encoded.tokens, encoded.views, oracle.charts_said(encoded), oracle.expectation, DOMAIN, 6)
    assert alone.fit is None and math.isnan(best_fit(None, [], None, 1e6, DOMAIN, lambda: None))


def test_an_oracle_that_goes_on_leaves_it_out(straight, nano_zoo, tmp_path):
    out = train(TrainConfig(str(nano_zoo), str(tmp_path / "on"), size="tiny", steps=1, batch=4, start=str(straight)))
    assert Oracle.from_pretrained(out, anyway=True).model.reranker is None


def test_one_goes_on_from_the_reranker_of_an_oracle(config, straight, tmp_path):
    """What the old one is not made for adds nothing at first: the new one begins as it is."""
    old = Oracle.from_pretrained(straight, anyway=True).model.reranker
    torch.manual_seed(3)
    plain, new = Reranker(8, 2), Reranker(8, 2, twice=True)
    go_on_from(plain, new, "there")
    told = tables()
    with torch.inference_mode():
        assert torch.allclose(new.eval()(*told, *SIZE), plain.eval()(*told, *SIZE), atol=1e-5)
    on = train_reranker(replace(config, oracle=str(straight), out=str(tmp_path / "on"), steps=1, lr=1e-6, warmup=0, go_on=True))
    again = Oracle.from_pretrained(on, anyway=True)
    moved, card = again.model.reranker, again.card["reranker"]
    assert card["training"]["go_on"] and card["after"]["training"]["steps"] == 60
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(old.parameters(), moved.parameters(), strict=True))
    with pytest.raises(UserError, match="no reranker to go on from"):
        train_reranker(replace(config, out=str(tmp_path / "none"), go_on=True))
    with pytest.raises(UserError, match="'width': 8.*") as caught:
        train_reranker(replace(config, oracle=str(straight), out=str(tmp_path / "wide"), width=9, go_on=True))
    assert "--width" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"steps": 0}, "--steps 0"),
        ({"charts": 1}, "--charts 1"),
        ({"drawn": 2}, "--drawn 2"),
        ({"lr": 0.0}, "--lr 0"),
        ({"targets": 0}, "--targets 0"),
    ],
)
def test_options_that_make_no_sense(config, change, match, tmp_path):
    with pytest.raises(UserError, match=match):
        train_reranker(replace(config, out=str(tmp_path / "bad"), **change))
    assert not (tmp_path / "bad").exists()


def test_oracles_and_folders_that_do_not_fit(config, straight, nano_zoo, tmp_path):
    with pytest.raises(UserError, match="already an oracle|--resume|an oracle already"):
        train_reranker(replace(config, out=str(straight)))
    with pytest.raises(UserError, match="does not read"):
        train_reranker(replace(config, oracle="charts", out=str(tmp_path / "wide")))
    raw = train(TrainConfig(str(nano_zoo), str(tmp_path / "raw"), size="tiny", steps=1, batch=4, encoding="chunk", tokens=8))
    with pytest.raises(UserError, match="encoding chunk"):
        train_reranker(replace(config, oracle=str(raw), out=str(tmp_path / "other")))


def test_a_card_with_a_trust_that_cannot_be():
    with pytest.raises(ValueError, match="expects what cannot be"):
        Expectation.from_card({"calibration": {"expectation": {"tests": {}, "trust": float("nan")}}})
