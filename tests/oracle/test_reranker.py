"""A reranker: free of gauge and of names, trained to tell charts apart, resumed after a kill, and asked in the second look."""

import json
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
from weight_oracle.oracle.contrasts import Batches, Contrasts, Hard, contrasts_of
from weight_oracle.oracle.data import pick
from weight_oracle.oracle.denoiser import Denoiser, divergence, misread
from weight_oracle.oracle.generate import Reply
from weight_oracle.oracle.nearby import better, nearby
from weight_oracle.oracle.reconsider import Considered, Expectation, best_found, consider
from weight_oracle.oracle.reranker import Reranker, responses_of
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
from weight_oracle.zoo.build import can_compile

DOMAIN = Domain(4, 3, (2, 3))
SIZE = DOMAIN.symbols, DOMAIN.lengths[1]
CHARTS = [parse(f"if {test} is a: say p else: say q") for test in ("first", "last", "at 2")] + [parse("if has c: say r else: say q")]


def tables(seed=0, targets=2):
    generator = torch.Generator().manual_seed(seed)
    C = len(beliefs(DOMAIN.symbols, DOMAIN.lengths[1]))
    responses = (3 * torch.randn(targets, C, DOMAIN.answers, generator=generator)).log_softmax(-1)
    counts = torch.from_numpy(np.stack([answered(chart, DOMAIN) for chart in CHARTS]))
    return responses, counts.expand(targets, *counts.shape)


def a_reranker(denoises=False):
    torch.manual_seed(0)
    reranker = Reranker(8, 2, twice=True, denoises=denoises)
    nn.init.normal_(reranker.add_twice.weight)  # which adds nothing as it is made
    for part in (reranker.of_denoised, reranker.twice_of_denoised) if denoises else ():
        nn.init.normal_(part.weight)
    return reranker.eval()


def fits(reranker, responses, counts):
    return reranker(responses, reranker.denoise(responses, *SIZE), counts, *SIZE)


def renamed(x, symbols, answers):
    placed, pairs, both = apart(x, *SIZE)
    placed = placed.index_select(-4, symbols).index_select(-3, symbols).flatten(-5, -2)
    pairs = pairs.index_select(-3, symbols).index_select(-2, symbols).flatten(-4, -2)
    both = both.index_select(-4, symbols).index_select(-3, symbols).flatten(-4, -2)
    return torch.cat([placed, pairs, both], -2).index_select(-1, answers)


@torch.inference_mode()
def test_it_compares_each_target_with_each_of_its_charts(monkeypatch):
    reranker, (responses, counts) = a_reranker(denoises=True), tables()
    found = fits(reranker, responses, counts)
    assert found.shape == (2, len(CHARTS)) and found.std(1).min() > 1e-3
    alone = fits(reranker, responses[1:], counts[1:, 2:3])
    assert torch.allclose(alone[0, 0], found[1, 2], atol=1e-5)
    monkeypatch.setattr("weight_oracle.oracle.reranker._AT_ONCE", 3 * counts[0, 0].numel())  # a part of three, and what is left
    assert torch.allclose(reranker.compare(responses[1], counts[1], *SIZE), found[1], atol=1e-5)


@torch.inference_mode()
def test_names_do_not_matter():
    """Symbols and answers in another order in both tables: the same fit; in one alone: another."""
    reranker, (responses, counts) = a_reranker(denoises=True), tables()
    symbols, answers = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])
    other = renamed(responses, symbols, answers)
    found = fits(reranker, responses, counts)
    assert torch.allclose(fits(reranker, other, renamed(counts, symbols, answers)), found, atol=1e-5)
    assert not torch.allclose(fits(reranker, other, counts), found, atol=1e-3)
    assert other.shape == responses.shape and not torch.allclose(reranker(responses, None, counts, *SIZE), found, atol=1e-3)


@torch.inference_mode()
def test_names_do_not_matter_to_what_is_read():
    """Symbols and answers in another order: what is read is in that order too; every sort of mixture is read in its own place."""
    torch.manual_seed(0)
    denoiser, responses = Denoiser().eval(), tables()[0]
    nn.init.normal_(denoiser.add_twice.weight, std=0.1)
    S, n = SIZE
    symbols, answers = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])
    found = denoiser(responses, S, n)
    assert found.shape == responses.shape and torch.allclose(found.exp().sum(-1), torch.ones(found.shape[:2]), atol=1e-5)
    again = denoiser(renamed(responses, symbols, answers), S, n)
    assert torch.allclose(again, renamed(found, symbols, answers), atol=1e-4) and not torch.allclose(again, found, atol=1e-2)
    # before it has learned anything, what it reads of a mixture is nearest to the response itself
    parts = [part.flatten(1, -2) for part in apart(found - found.mean(-1, keepdim=True), S, n)]
    told = [part.flatten(1, -2) for part in apart(responses - responses.mean(-1, keepdim=True), S, n)]
    assert all(torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1] > 0.9 for x, y in zip(parts, told, strict=True))


def test_divergence_is_what_the_loss_is_made_of():
    responses, counts = tables()
    of = [divergence(responses[0].numpy(), row.numpy()) for row in counts[0]]
    loss = [misread(responses[:1], row[None]).item() * len(row) for row in counts[0]]
    truth = counts[0].double() / 64
    by_torch = [torch.nn.functional.kl_div(responses[0].double(), row, reduction="sum").item() for row in truth]
    assert of == pytest.approx(loss, rel=1e-4) and of == pytest.approx(by_torch, rel=1e-4) and min(of) > 1
    same = (counts[0, 0].float() / 64).clamp(min=1e-9).log().numpy()
    assert divergence(same, counts[0, 0].numpy()) == pytest.approx(0, abs=1e-3)


OPTIONS = [("has", 0), ("first", 0), ("last", 0), ("at", 2)]


def around(chart, most_ifs):
    """All charts that one edit makes, with what they answer."""
    every = every_test(OPTIONS, DOMAIN)
    more = {with_test(chart, (then,), t, side, a) for then in (0, 1) for t in every for side in (0, 1) for a in range(3) if a != 1 - then}
    return {c: answered(c, DOMAIN) for c in changes(chart, every, DOMAIN) | (more if n_ifs(chart) < most_ifs else set())}


@pytest.mark.parametrize("most_ifs", [4, 1])
def test_charts_nearby_come_in_the_order_of_their_divergence(most_ifs):
    """As if each had been compared by itself; of those that answer alike one is given, and the chart itself is none of them."""
    shares, chart = tables()[0][0].numpy(), CHARTS[0]
    found = [*nearby(shares, chart, OPTIONS, DOMAIN, most_ifs)]
    every, own = around(chart, most_ifs), answered(chart, DOMAIN).tobytes()
    values = [divergence(shares, answered(c, DOMAIN)) for c in found]
    distinct = {counts.tobytes(): divergence(shares, counts) for counts in every.values() if counts.tobytes() != own}
    assert values == pytest.approx(sorted(distinct.values()), rel=1e-4) and len(found) == len(distinct) >= 15
    assert {answered(c, DOMAIN).tobytes() for c in found} == {*distinct} and {*found} <= {*every}
    differs = [np.abs(answered(c, DOMAIN).astype(int) - answered(chart, DOMAIN)).sum(1).mean() / 128 for c in found]
    far = [*nearby(shares, chart, OPTIONS, DOMAIN, most_ifs, apart=sorted(differs)[9])]
    assert far == [c for c, by in zip(found, differs, strict=True) if by > sorted(differs)[9]] and 0 < len(far) < len(found)


@torch.inference_mode()
def test_of_charts_nearby_those_are_taken_that_a_reranker_fits_best(monkeypatch):
    reranker, (responses, _) = a_reranker(), tables()
    shares, chart = responses[0].numpy(), CHARTS[0]
    fit = lambda c: reranker.compare(responses[0], torch.from_numpy(answered(c, DOMAIN))[None], *SIZE).item()  # noqa: E731
    monkeypatch.setattr("weight_oracle.oracle.nearby._SIEVED", 20)
    found = better(reranker, responses[0], shares, chart, OPTIONS, DOMAIN, 4, 5)
    looked = [*nearby(shares, chart, OPTIONS, DOMAIN, 4)][:20]
    assert [fit(c) for c in found] == pytest.approx(sorted(map(fit, looked), reverse=True)[:5], abs=1e-5) and {*found} <= {*looked}
    assert better(reranker, responses[0], shares, parse("say p"), [], Domain(4, 1, (2, 3)), 4, 5) == []


def test_compiled_it_fits_the_same():
    if not can_compile():
        pytest.skip("torch.compile does not work here")
    reranker, (responses, counts) = a_reranker(), tables()
    plain = reranker.compare(responses[0], counts[0], *SIZE)
    for _ in range(2):
        reranker.hasten()
    assert torch.allclose(reranker.compare(responses[0], counts[0], *SIZE), plain, atol=1e-4)
    assert torch.allclose(reranker.compare(responses[0], counts[0, :1], *SIZE), plain[:1], atol=1e-4)


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
    assert oracle.model.reranker is not None and oracle.model.config.reranker == {"width": 8, "rounds": 2, "twice": True, "denoises": True}
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
    near = lambda *about: calls.append(about[3]) or better(*about)  # noqa: E731
    monkeypatch.setattr("weight_oracle.oracle.reconsider.better", near)

    def found(doubt):
        encoded.read.clear()
        expectation["doubt"] = doubt
        return oracle.considered(encoded), oracle._of_the_best(encoded)[0]

    said_chart = parse("if has a: say p else: say q")
    (plain, said), (sure, also) = found(None), found(-1e6)
    assert not calls and sure.charts == plain.charts and said == also
    (more, best) = found(1e6)
    assert 2 <= len(calls) <= 4 and calls[0] in plain.charts  # the two best, and the best of all those up to twice more
    assert more.charts[: len(plain.charts)] == plain.charts and len({*more.charts}) == len(more.charts) > len(plain.charts)
    assert all(canonical(chart, DOMAIN) == chart and n_ifs(chart) >= 1 for chart in more.charts)
    assert (
        more.best().fit >= plain.best().fit
        and best == more.best().fit
        and said == pytest.approx(float(plain.fit[plain.charts.index(said_chart)]), abs=1e-5)
    )
    alone = consider(oracle.model, oracle.codec, encoded.tokens, encoded.views, oracle.charts_said(encoded), oracle.expectation, DOMAIN, 6)
    assert alone.fit is None and best_found(None, [], None, 1e6, DOMAIN, lambda: None)[0] is None


def test_hard_charts_are_near_the_right_one_and_diverge_least(straight, zoo, monkeypatch):
    settings = EncoderConfig(symbols=DOMAIN.symbols, answers=DOMAIN.answers, lengths=DOMAIN.lengths, width=16, channels=8, latents=2)
    hard = Hard(2, str(straight))
    found = contrasts_of(zoo, [zoo], settings, charts=4, most=12, seed=0, hard=hard)
    plain = contrasts_of(zoo, [zoo], settings, charts=4, most=12, seed=0)
    assert len(found) >= 4 and found.answered.shape[1] == 4
    assert all(row[0].tobytes() != other.tobytes() for row in found.answered for other in row[1:])

    def apart_from_read(some):
        read = hard.read(torch.from_numpy(some.responses).float(), DOMAIN).numpy()
        return np.array([[divergence(shares, counts) for counts in row] for shares, row in zip(read, some.answered, strict=True)])

    assert apart_from_read(found)[:, 1:3].mean() < apart_from_read(plain)[:, 1:].mean() - 1
    with pytest.raises(UserError, match="has no reranker"):
        contrasts_of(zoo, [zoo], settings, charts=4, most=12, seed=0, hard=Hard(2, "triggers"))


def test_without_a_denoiser_there_are_no_hard_charts(config, straight, tmp_path):
    old = train_reranker(replace(config, out=str(tmp_path / "old"), steps=1, warmup=0, denoises=False))
    assert Oracle.from_pretrained(old, anyway=True).model.reranker.read(tables()[0][0], *SIZE) is None
    with pytest.raises(UserError, match="no denoiser"):
        train_reranker(replace(config, oracle=str(old), out=str(tmp_path / "hard"), hard=2))
    assert not (tmp_path / "hard").exists()


def test_an_oracle_that_goes_on_leaves_it_out(straight, nano_zoo, tmp_path):
    out = train(TrainConfig(str(nano_zoo), str(tmp_path / "on"), size="tiny", steps=1, batch=4, start=str(straight)))
    assert Oracle.from_pretrained(out, anyway=True).model.reranker is None


def test_one_goes_on_from_the_reranker_of_an_oracle(config, straight, tmp_path):
    """What the old one is not made for adds nothing at first: the new one begins as it is."""
    old = Oracle.from_pretrained(straight, anyway=True).model.reranker
    torch.manual_seed(3)
    plain, new = Reranker(8, 2), Reranker(8, 2, twice=True, denoises=True)
    go_on_from(plain, new, "there")
    told = tables()
    with torch.inference_mode():
        assert torch.allclose(fits(new.eval(), *told), fits(plain.eval(), *told), atol=1e-5)
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
        ({"hard": -1}, "--hard -1"),
        ({"hard": 4}, "--hard 4"),
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
