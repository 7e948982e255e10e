"""Training beside the targets' training: slices are the uninterrupted run, the pool is bounded, checkpoints are small and exact."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from weight_oracle.cli import main
from weight_oracle.errors import UserError
from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.data import load_population, together
from weight_oracle.scaling import floors
from weight_oracle.scaling.checkpoints import LIMIT, STATE, halves, last_checkpoint, read_checkpoint, read_shards, whole, write_checkpoint
from weight_oracle.scaling.floors import Cost, device_peak, report, shard_cost
from weight_oracle.scaling.loop import whole_step
from weight_oracle.scaling.pool import APART, Fresh, Pool, apart, merged
from weight_oracle.scaling.scale import ScaleConfig, _Run, scale
from weight_oracle.truth.canonical import split_of
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import to_text
from weight_oracle.truth.parse import parse
from weight_oracle.weights.atoms import AtomsEncoder
from weight_oracle.weights.encoder import EncoderConfig
from weight_oracle.zoo.build import build_shard
from weight_oracle.zoo.recipe import recipe_from_dict


@pytest.fixture(scope="module")
def quick(nano_recipe, tmp_path_factory) -> Path:
    """Targets that take a moment to train, few to a shard."""
    data = json.loads(nano_recipe.read_text()) | {"steps": [40], "shard_size": 12, "lr": [0.03, 0.04], "pool": 64, "checks": 16}
    data["charts"] = {"kinds": ["has", "first"], "ifs": [1, 1]}
    file = tmp_path_factory.mktemp("quick") / "quick.json"
    file.write_text(json.dumps(data))
    return file


@pytest.fixture(scope="module")
def config(quick, tmp_path_factory) -> ScaleConfig:
    out = tmp_path_factory.mktemp("scale") / "straight"
    return ScaleConfig((str(quick),), str(out), size="tiny", steps=5, batch=4, pool=2, round=2, warmup=2)


@pytest.fixture(scope="module")
def straight(config):
    return scale(config)


def same_end(config: ScaleConfig, other: str) -> None:
    assert (Path(config.out) / "model.safetensors").read_bytes() == (Path(other) / "model.safetensors").read_bytes()
    ends = [read_checkpoint(last_checkpoint(Path(out) / "run")) for out in (config.out, other)]
    for part in range(2):
        assert ends[0][part].keys() == ends[1][part].keys()
        assert all(torch.equal(tensor, ends[1][part][name]) for name, tensor in ends[0][part].items())
    counts = [[state["step"], state["tally"]["shards"], state["tally"]["targets"]] for *_, state in ends]
    assert counts[0] == counts[1] == [5, 4, 48]


class Killed(Exception):
    pass


def test_a_run_in_slices_is_the_uninterrupted_run(config, straight, tmp_path):
    sliced, slices = replace(config, out=str(tmp_path / "sliced"), slice=0.01), 0
    done = None
    while done is None or not done.finished:  # at least a shard or a step in each
        done, slices = scale(sliced), slices + 1
        assert slices < 40
    assert slices > 5  # each step its own
    same_end(sliced, config.out)


@pytest.mark.parametrize("cache", [True, False])
def test_a_killed_run_goes_on_from_its_checkpoint(config, straight, tmp_path, cache):
    killed = replace(config, out=str(tmp_path / "killed"), save_every=0.0, cache=cache)

    def kill(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("oracle's steps", 3):
            raise Killed

    with pytest.raises(Killed):
        scale(killed, kill)
    run = Path(killed.out) / "run"
    assert last_checkpoint(run).name == "checkpoint-00000003" and len(list(run.glob("checkpoint-*"))) == 1
    assert len(list((run / "pool").glob("*"))) == (2 if cache else 0)
    broken = run / "checkpoint-00000004"  # killed while it was being written
    broken.mkdir()
    (broken / "weights-001.safetensors").write_bytes(b"")
    torch.manual_seed(123)  # whatever happened in between
    done = scale(killed)
    assert done.report["rebuilt"] == (0 if cache else 2)
    same_end(killed, config.out)


def test_the_pool_is_bounded_and_holds_new_targets_of_the_training_split(config, straight, quick):
    recipe = recipe_from_dict(json.loads(quick.read_text()), "")
    settings = EncoderConfig(symbols=4, answers=3, lengths=(2, 3), width=8, channels=4)
    pool, seen = Pool((recipe,), settings, 2), []
    for round_ in range(4):
        for number in pool.missing(round_):
            assert pool.add(number)
            seen.append(number)
        assert sorted(pool.parts) == [round_, round_ + 1]
        truths = [row for part in pool.parts.values() for row in part.fresh.truths]
        assert [row["index"] for row in truths] == list(range(round_ * 12, round_ * 12 + 24))
        splits = {name: [r for r in truths if r["split"] == name and r["learned"]] for name in ("train", "validation", "test")}
        assert splits["test"] and len(pool.training()) == len(splits["train"])  # the recipe does draw charts of the test split
        assert {split_of(facts.chart, recipe.domain) for facts in pool.training().facts} == {"train"}
        held = pool.held_out()
        assert (0 if held is None else len(held)) == len(splits["validation"])
    assert seen == [0, 1, 2, 3, 4]  # each once
    other = replace(recipe, domain=Domain(4, 3, (3, 4)), name="other")
    rows = apart(truths, recipe, (recipe, other))
    for row in rows:
        splits = {split_of(parse(row["chart"]), domain) for domain in (recipe.domain, other.domain)}
        assert row["split"] == (splits.pop() if len(splits) == 1 else APART)
    assert any(row["split"] == APART for row in rows)


def test_a_pool_may_begin_small_and_grow():
    pool = Pool((), EncoderConfig(), 4, first=2)
    assert [list(pool.wanted(round_)) for round_ in range(5)] == [[0, 1], [0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]


def test_an_oracle_of_small_chances_reads_them(config, quick, tmp_path, monkeypatch):
    monkeypatch.setattr("weight_oracle.zoo.build._judge_chances", lambda *_: None)  # which these few steps would not do for
    file = tmp_path / "chances.json"
    file.write_text(json.dumps(json.loads(quick.read_text()) | {"chances": [0.1]}))
    done = scale(replace(config, recipes=(str(file),), out=str(tmp_path / "out"), steps=1))
    assert done.finished and json.loads((tmp_path / "out" / "oracle.json").read_text())["chances"] is True


def test_a_run_may_train_so_many_shards_and_no_more():
    pool = Pool((), EncoderConfig(), 8, first=2, most=4)
    assert [pool.wanted(round_) for round_ in range(4)] == [range(0, 2), range(0, 3), range(0, 4), range(0, 4)]


def test_a_run_may_end_with_the_time_and_the_rate_falls_with_it(config, straight, tmp_path, monkeypatch):
    now, rates = [0.0], []
    monkeypatch.setattr(_Run, "elapsed", property(lambda run: now[0]))

    def update(accelerator, model, optimizer, rate):
        rates.append(rate)
        now[0] += 1

    monkeypatch.setattr("weight_oracle.scaling.scale.update", update)
    done = scale(replace(config, out=str(tmp_path / "timed"), steps=1000, seconds=4.0, warmup=1, shards=3))
    assert done.finished and done.step == 4 and done.report["shards"] == 3
    assert rates == pytest.approx([config.lr * x for x in (1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2)])
    assert (tmp_path / "timed" / "oracle.json").exists()
    again = scale(replace(config, out=str(tmp_path / "timed"), steps=1000, seconds=4.0, warmup=1, shards=3))
    assert again.finished and again.step == 4 and len(rates) == 4
    now[0] = 0.0  # builders have further shards in their hands when it is over
    assert scale(replace(config, out=str(tmp_path / "early"), steps=1000, seconds=1.0, warmup=1, builders=1, at_once=2)).step == 1


def test_targets_that_are_trained_ahead_are_the_same(config, straight, tmp_path):
    """By processes of their own, which begin with the shards of rounds to come; questions are drawn by others."""
    ahead = replace(config, out=str(tmp_path / "ahead"), builders=2, workers=1)
    done = scale(ahead)
    assert done.finished and done.report["shards"] == 4 and not done.pool.ahead
    same_end(ahead, config.out)


def test_pools_are_merged_by_shape(quick):
    recipe = recipe_from_dict(json.loads(quick.read_text()) | {"widths": [8, 16]}, "")
    settings = EncoderConfig(symbols=4, answers=3, lengths=(2, 3), width=8, channels=4)
    zoos = [Fresh(Path(), recipe, (i,), {i: build_shard(recipe, i)}) for i in range(3)]
    parts = [load_population(zoo, AtomsEncoder, settings, np.arange(12)) for zoo in zoos]
    one, apart_ = merged(parts), together(parts)
    assert [len(g["rows"]) for g in one.groups] == [24, 12] and len(apart_.groups) == 3
    for i in (0, 13, 35):
        mine, its = one.take([i]), apart_.take([i])
        assert all(torch.equal(mine[name], tensor) for name, tensor in its.items()) and one.facts[i] == apart_.facts[i]


def test_a_checkpoint_is_exact_in_files_of_less_than_16_mb(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weights = {"a": torch.randn(1000, 2100, generator=generator), "b": torch.tensor(-3.0), "c": torch.randn(7, generator=generator)}
    weights["c"][:4] = torch.tensor([0.0, -0.0, 1e-40, 3.3e38])
    moments = {"exp_avg.a": torch.randn(1000, 2100, generator=generator), "step.a": torch.tensor(3.0)}
    write_checkpoint(tmp_path, 3, weights, moments, {"seed": 1})
    folder = write_checkpoint(tmp_path, 4, weights, moments, {"seed": 1})
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    files = list(folder.iterdir())
    assert len(files) <= 8 and all(file.stat().st_size < 16_000_000 for file in files)
    found, others, state = read_checkpoint(folder)
    assert state["step"] == 4 and state["seed"] == 1
    for given, read in ((weights, found), (moments, others)):
        assert given.keys() == read.keys() and all(torch.equal(tensor, read[name]) for name, tensor in given.items())
    rounded = read_shards(folder, state["weights"])
    assert all(x.dtype == torch.bfloat16 for x in rounded.values())
    assert torch.allclose(rounded["a"].float(), weights["a"], rtol=2**-8)
    assert sum(f.stat().st_size for f in files) < 6 * 2_100_000 * 2 + 100_000  # 12 bytes a parameter, had it both moments: 8 here
    (folder / "rest-001.safetensors").unlink()
    with pytest.raises(UserError, match="no such file"):
        read_checkpoint(folder)


def test_a_number_is_its_rounding_and_a_remainder():
    bits = torch.randint(-(1 << 31), 1 << 31, (10_000,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    numbers = bits.view(torch.float32)
    numbers = numbers[numbers.abs() < 3e38]
    high, low = halves(numbers)
    assert torch.equal(whole(high, low).view(torch.int32), numbers.view(torch.int32))
    assert (high.float() - numbers).abs().le(numbers.abs() * 2**-8 + 1e-38).all()


def test_a_finished_oracle_is_read_like_any_other(config, straight, nano_target):
    assert straight.finished
    files = list(Path(config.out).glob("*.safetensors"))
    assert {t.dtype for file in files for t in load_file(file).values()} == {torch.bfloat16}
    oracle = Oracle.from_pretrained(config.out)
    assert oracle.card["training"]["steps"] == 5 and str(Path(config.out).parent) not in json.dumps(oracle.card["zoos"])
    assert to_text(oracle.read(nano_target)).startswith(("say", "if"))
    whole_ = oracle.model.state_dict()
    oracle.save_pretrained(Path(config.out).parent / "parts", max_shard_size="300KB")
    again = Oracle.from_pretrained(Path(config.out).parent / "parts")
    assert len(list((Path(config.out).parent / "parts").glob("*.safetensors"))) > 2
    assert all(torch.equal(tensor, again.model.state_dict()[name]) for name, tensor in whole_.items())


@pytest.mark.parametrize("every", [1, 25])
def test_a_run_that_comes_to_nothing_says_at_which_step_and_is_not_kept(config, tmp_path, monkeypatch, every):
    """Also where losses are looked at later, as on a GPU, and the run is stopped before."""
    whole_run, one = _Run.__init__, _Run._one

    def start(self, *given):
        whole_run(self, *given)
        self.every = every

    def broken(self, batch):
        one(self, batch)
        if self.step == 2:
            self.unseen[-1] = self.unseen[-1] * float("nan")
        if self.step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(_Run, "__init__", start)
    monkeypatch.setattr(_Run, "_one", broken)
    out = tmp_path / "broken"
    with pytest.raises(UserError, match="loss of step 2 is nan"):
        scale(replace(config, out=str(out), steps=6, round=6))
    assert last_checkpoint(out / "run") is None


def test_what_a_step_takes_is_counted_once_for_all_shards_of_a_kind(quick, monkeypatch):
    recipe = replace(recipe_from_dict(json.loads(quick.read_text()) | {"widths": [8, 16]}, ""), name="counted")
    calls, real = [], floors.shard_cost
    monkeypatch.setattr(floors, "shard_cost", lambda *given: calls.append(given[1]) or real(*given))
    costs = [floors.shard_step_cost(recipe, shard) for shard in range(4)]
    assert calls == [0, 1] and costs[0] == costs[2] != costs[1] == costs[3]


def test_the_floors_are_there(config, straight, quick):
    found = straight.report
    for part in ("target_training", "oracle_training"):
        for name in ("matmul", "other", "bytes", "arithmetic_seconds", "memory_seconds", "seconds"):
            assert 0 < found[part][name] < 1e15
        assert found[part]["times"] > 1  # nothing is faster than its floor
    recipe = recipe_from_dict(json.loads(quick.read_text()), "")
    cost, twice = shard_cost(recipe, 0, 10), shard_cost(replace(recipe, shard_size=24), 0, 10)
    assert twice == cost * 2 and shard_cost(recipe, 0, 20) == cost * 2
    peak = device_peak(torch.device("cpu"))
    assert peak.measured and 1e8 < peak.vector < 1e14 and 1e8 < peak.bandwidth < 1e13
    assert report(Cost(1e9, 0, 4e9), 8.0, replace(peak, matmul=1e9, vector=5e8, bandwidth=1e9), tf32=False)["times"] == 2


def test_counting_keeps_nothing_of_what_it_counted():
    weight = torch.ones(4, requires_grad=True)
    of = lambda: weight.view_as(weight).grad_fn.next_functions[0][0]  # noqa: E731

    def step():
        weight.exp()  # saves its own output, and no loss depends on it
        of().metadata["met"] = True
        (weight * weight).sum().backward()

    floors.step_cost(step, 4)
    assert not of().metadata


def test_matrix_products_are_counted_as_they_are():
    from weight_oracle.scaling.floors import step_cost

    weight = torch.randn(64, 32, requires_grad=True)
    x = torch.randn(16, 64)
    cost = step_cost(lambda: (x @ weight).square().sum().backward(), weight.numel())
    assert cost.matmul == 2 * 2 * 16 * 64 * 32  # forward, and the gradient of the weight
    assert cost.bytes >= 32 * weight.numel() + 2 * 4 * (x.numel() + 16 * 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipes": ("nonsense",)}, "no recipe called"),
        ({"recipes": ("charts-tiny-test",)}, "test split alone"),
        ({"recipes": ()}, "which recipe"),
        ({"pool": 0}, "--pool 0"),
        ({"slice": 0.0}, "--slice 0"),
        ({"steps": 8}, "begun with --steps 5, not 8"),
        ({"lr": 1e-3}, "begun with --lr"),
    ],
)
def test_bad_input_is_one_clear_error(config, straight, change, message):
    with pytest.raises(UserError, match=message):
        scale(replace(config, **change))


def test_a_run_goes_on_from_a_trained_oracle(config, nano_oracle, tmp_path):
    out = str(tmp_path / "after")
    scale(replace(config, out=out, start=str(nano_oracle), steps=1, lr=1e-9))
    trained, after = (Oracle.from_pretrained(folder) for folder in (nano_oracle, out))
    assert after.card["after"]["training"]["steps"] == 2
    tensors = after.model.state_dict()
    assert all(torch.allclose(tensors[name], tensor, rtol=2**-8, atol=1e-6) for name, tensor in trained.model.state_dict().items())


def test_an_oracle_is_not_overwritten(config, nano_oracle):
    with pytest.raises(UserError, match="already holds an oracle"):
        scale(replace(config, out=str(nano_oracle)))


def test_the_command(nano_recipe, tmp_path, capsys):
    out = tmp_path / "oracle"
    line = ["scale", str(nano_recipe), "--out", str(out), "--size", "tiny", "--steps", "3", "--batch", "4", "--pool", "2", "--json"]
    assert main([*line, "--slice", "0.001"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert not first["finished"] and first["step"] < 3
    assert main(line) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["finished"] and done["step"] == 3 and done["oracle_training"]["memory_seconds"] > 0
    assert "calibration" in Oracle.from_pretrained(out).card and not (out / "run" / "pool").exists()
    assert main(line) == 0  # nothing left to do
    assert main([*line[:-1], "--seed", "5"]) == 1
    assert "begun with --seed 0, not 5" in capsys.readouterr().err
    state = json.loads((last_checkpoint(out / "run") / STATE).read_text())
    with safe_open(last_checkpoint(out / "run") / state["weights"]["files"][0], "pt") as file:
        assert len(list(file.keys())) == len(state["weights"]["tensors"])
    assert LIMIT < 16_000_000


@pytest.fixture
def ctrl_c_is_heard():
    """As in a terminal: a test run in the background may have been told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_waits_for_the_end_of_a_step(ctrl_c_is_heard):
    done = []
    with pytest.raises(KeyboardInterrupt), whole_step():
        os.kill(os.getpid(), signal.SIGINT)
        done.append(1)
    assert done
    with pytest.raises(KeyboardInterrupt):  # and is what it was afterwards
        os.kill(os.getpid(), signal.SIGINT)


def test_the_command_says_in_one_line_what_is_wrong(tmp_path, capsys):
    assert main(["scale", "charts-tiny-test", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("weight-oracle: charts-tiny-test: draws charts of the test split alone") and error.count("\n") == 1


def test_the_cache_keeps_what_builders_have_ready_for_later_rounds(quick, tmp_path):
    recipe = recipe_from_dict(json.loads(quick.read_text()), str(quick))
    pool = Pool((recipe,), EncoderConfig(symbols=4, answers=3, lengths=(2, 3)), 2, cache=tmp_path, builders=3)
    files = [tmp_path / f"{number:08d}-{recipe.hash}.safetensors" for number in range(6)]
    for file in files:
        file.touch()
    pool.missing(1)  # this round has shards 1 and 2
    assert [file.exists() for file in files] == [False, True, True, True, True, True]
