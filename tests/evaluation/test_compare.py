"""A comparison from end to end on a minute zoo: what it holds, that it goes on after a stop, and what it says to bad input."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from weight_oracle import cli
from weight_oracle.errors import UserError
from weight_oracle.evaluation.compare import CompareConfig, _claimed, chosen_rate, compare
from weight_oracle.evaluation.plan import RAW, VARIANTS, Run, plan
from weight_oracle.evaluation.subjects import encode
from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.model import ENCODERS
from weight_oracle.oracle.tokenizer import Codec, vocabulary
from weight_oracle.oracle.train import TrainConfig, new_oracle
from weight_oracle.zoo import build
from weight_oracle.zoo.build import build_zoo
from weight_oracle.zoo.recipe import recipe_from_dict
from weight_oracle.zoo.store import open_zoo

TIMES = ("seconds_per_step", "seconds_per_1000_targets")


@pytest.fixture(scope="module")
def config(nano_zoo, tmp_path_factory) -> CompareConfig:
    out = str(tmp_path_factory.mktemp("compare") / "out")
    small = {"encodings": ("chunk", "atoms"), "tokens": 10, "seeds": (0, 1), "rates": (1e-3, 4e-3), "steps": 4, "sweep_steps": 2}
    return CompareConfig(str(nano_zoo), out, variants=("memorise", "hints"), batch=4, test_targets=6, **small)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def done(config):
    return compare(config)


def timeless(table: dict) -> dict:
    return {name: {k: v for k, v in row.items() if k not in TIMES} for name, row in table["rows"].items()}


def test_the_plan_is_in_an_order_of_use():
    runs = plan(tuple(ENCODERS), 32, (0, 1, 2), (1e-3, 2e-3, 4e-3), VARIANTS)
    assert len({run.key for run in runs}) == len(runs)
    purposes = list(dict.fromkeys(run.purpose for run in runs))
    assert purposes == ["sweep", "main", "memorise", "tokens", "bits", "canonical", "augment", "natural", "hints"]
    count = {p: sum(run.purpose == p for run in runs) for p in purposes}
    assert count == {
        "sweep": 18, "main": 18, "memorise": 1, "tokens": 6, "bits": 2, "canonical": 5, "augment": 2, "natural": 6, "hints": 1,
    }  # fmt: skip
    main = [(run.seed, run.encoding) for run in runs if run.purpose == "main"]
    assert main == [(seed, name) for seed in (0, 1, 2) for name in ENCODERS]  # all encodings with one seed before another seed
    assert {run.encoding for run in runs if run.canonical} == {*RAW} == {*ENCODERS} - {"atoms"}
    assert all(run.lr is None for run in runs if run.purpose != "sweep")
    assert not any(run.hints for run in runs if run.purpose != "hints")
    assert {run.tokens for run in runs if run.purpose == "tokens"} == {8, 128}


def test_every_run_is_measured_and_in_the_table(config, done):
    out = Path(config.out)
    assert done["finished"] == done["planned"] == 4 + 4 + 2
    rows = done["rows"]
    assert [row["run"]["purpose"] for row in rows.values()] == ["main", "main", "memorise", "hints"]
    for row in rows.values():
        assert row["weight_tokens"] == 10
        low, high = row["gap"]["interval"]
        assert low <= row["gap"]["mean"] <= high
        assert 0 <= row["charts"]["mean"] <= 1 and 0 <= row["questions"]["mean"] <= 1
        assert row["parameters"]["encoder"] < row["parameters"]["all"]
        assert row["seconds_per_1000_targets"] > 0 and row["seconds_per_step"] > 0
    chunk, atoms = list(rows.values())[:2]
    assert chunk["seeds"] == [0, 1] and len(set(chunk["gap"]["by_seed"])) == 2
    assert np.isclose(np.mean(chunk["questions"]["by_seed"]), chunk["questions"]["mean"])
    assert atoms["symmetry"]["relative"] < 1e-2 < chunk["symmetry"]["relative"]
    assert {*done["sweep"]} == {"chunk", "atoms"} and {*done["sweep"]["chunk"]} == {"0.001", "0.004"}
    best = min(done["sweep"]["chunk"], key=done["sweep"]["chunk"].__getitem__)
    assert chosen_rate(config, out, "chunk") == float(best) == chunk["rate"]
    text = (out / "table.md").read_text()
    assert "| chunk | 10 |" in text and "| atoms (hints) |" in text and "Can it learn at all?" in text
    assert json.loads((out / "table.json").read_text())["rows"] == json.loads(json.dumps(rows))
    assert all((out / f"{name}.svg").read_text().startswith("<?xml") for name in ("gap", "charts", "curves"))
    trained = Oracle.from_pretrained(out / "runs" / "main-chunk-10-tokens-seed-0" / "oracle")
    assert trained.card["training"]["hints"] is False and trained.settings.tokens == 10


def test_what_is_done_is_not_done_again(config, done):
    runs = Path(config.out) / "runs"
    removed = runs / "hints-atoms-10-tokens-hints-seed-0" / "result.json"
    before = {file: file.stat().st_mtime_ns for file in runs.glob("*/result.json") if file != removed}
    removed.unlink()  # stopped between training and measuring
    seen = []
    again = compare(config, lambda stage, *_: seen.append(stage))
    assert {*seen} == {"runs"}  # nothing is trained again
    assert timeless(again) == timeless(done)
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_a_comparison_that_was_killed_goes_on_to_the_same_table(config, done, tmp_path):
    class Killed(Exception):
        pass

    def kill(stage: str, step: int, total: int) -> None:
        if stage == "main-atoms-10-tokens-seed-0" and step >= 2:
            raise Killed

    stopped = replace(config, out=str(tmp_path))
    with pytest.raises(Killed):
        compare(stopped, kill)
    assert not (tmp_path / "runs/main-atoms-10-tokens-seed-0/result.json").exists()
    assert json.loads((tmp_path / "table.json").read_text())["finished"] >= 4  # what is done can be seen
    assert timeless(compare(stopped)) == timeless(done)


def test_two_at_once_share_the_work(config, nano_zoo, tmp_path):
    options = ["--encodings", "chunk", "--seeds", "0,1", "--lr", "1e-3", "--steps", "2", "--batch", "4", "--test-targets", "4"]
    arguments = ["compare", str(nano_zoo), str(tmp_path), *options, "--variants", "none", "--tokens", "4", "--json"]
    command = [sys.executable, "-c", "import sys; from weight_oracle.cli import main; sys.exit(main())", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes) as other:
        assert cli.main(arguments) == 0
        said, complaint = other.communicate(timeout=120)
        assert other.returncode == 0, complaint
    table = json.loads(said)
    assert table["finished"] == 2 and json.loads((tmp_path / "table.json").read_text())["rows"] == table["rows"]


def test_only_one_holds_a_run(tmp_path):
    with _claimed(tmp_path) as first, _claimed(tmp_path) as second:
        assert first and not second
    with _claimed(tmp_path) as third:
        assert third


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--encodings", "tea"], "no encoding called 'tea' — choose among atoms, chunk, quantised, svd, svd2, learned"),
        (["--variants", "tea"], "no variant called 'tea' — choose among memorise"),
        (["--encodings", "chunk,chunk"], "given twice"),
        (["--encodings", "none"], "nothing to compare"),
        (["--tokens", "0"], "at least one weight token"),
        (["--lr", "1e-3,fast"], "--lr '1e-3,fast' is not a list of numbers"),
        (["--lr", "0"], "teaches nothing"),
        (["--lr", "nan,1e-3"], "teaches nothing"),
        (["--lr", "1e-3,0.001"], "a learning rate is given twice"),
        (["--seeds", "0,0"], "a seed is given twice"),
        (["--seeds=-1"], "-1 is no seed"),
        (["--tokens", "4"], "hints need a weight token for each symbol"),
        (["--seeds", "first"], "--seeds 'first' is not a list of numbers"),
        (["--steps", "0"], "must be at least 1"),
        (["--targets", "0"], "must be at least 1"),
    ],
)
def test_bad_options(nano_zoo, tmp_path, capsys, options, complaint):
    assert cli.main(["compare", str(nano_zoo), str(tmp_path / "out"), *options]) == 2
    said = capsys.readouterr().err
    assert complaint in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_folder_of_another_comparison_is_left_alone(config, done):
    with pytest.raises(UserError, match="holds a comparison with steps 4, not 8"):
        compare(replace(config, steps=8))


@pytest.fixture(scope="module")
def other_zoo(nano_recipe, tmp_path_factory):
    """`make(**changes)`: a zoo like the minute one, hardly trained, all of whose targets count as learned."""

    def make(**changes):
        recipe = recipe_from_dict(json.loads(nano_recipe.read_text()) | {"steps": [1], **changes}, "test")
        return build_zoo(recipe, tmp_path_factory.mktemp("other") / "zoo", 96)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "LEARNED", 0.0)
        yield make


def test_what_would_fail_in_the_middle_is_refused_at_once(config, other_zoo, tmp_path):
    llama = other_zoo(families=["llama"])
    config = replace(config, out=str(tmp_path / "out"))
    with pytest.raises(UserError, match="svd-10-tokens reads GPT-2 targets alone"):
        compare(replace(config, zoo=str(llama), encodings=("chunk", "svd")))
    with pytest.raises(UserError, match="has llama targets, and the training zoo has none"):
        compare(replace(config, test=str(llama)))
    shorter = other_zoo(domain={"symbols": 4, "answers": 3, "lengths": [2, 2]})
    with pytest.raises(UserError, match="training targets follow charts of its test split"):
        compare(replace(config, test=str(shorter)))
    with pytest.raises(UserError, match="has other symbols, answers or lengths"):
        compare(replace(config, zoo=str(shorter), test=str(other_zoo(domain={"symbols": 4, "answers": 3, "lengths": [3, 3]}))))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("encoding", ["chunk", "svd2", "atoms"])
def test_a_target_is_read_the_same_among_others_of_other_shapes(encoding, other_zoo):
    zoo = open_zoo(other_zoo(widths=[8, 12]))
    made = TrainConfig(str(zoo.path), "", size="tiny", encoding=encoding, tokens=10)
    codec = Codec(vocabulary())
    model = new_oracle(made, [zoo], codec)
    places = np.array([3, 7, 50, 60, 90])
    together = encode(model, codec, zoo, places, n_views=2)
    assert {zoo.truths[i]["width"] for i in places} == {8, 12}
    for i, place in enumerate(places):
        alone = encode(model, codec, zoo, np.array([place]), n_views=2)
        assert torch.allclose(alone.tokens[0], together.tokens[i], atol=1e-5)
        assert torch.allclose(alone.renamed[:, 0], together.renamed[:, i], atol=1e-5)
    if encoding != "atoms":
        with pytest.raises(UserError, match="different numbers of weight tokens.*--tokens"):
            encode(new_oracle(replace(made, tokens=0), [zoo], codec), codec, zoo, places)


def test_a_diverged_sweep_is_not_chosen(config, tmp_path):
    config = replace(config, encodings=("chunk",), rates=(4e-3, 1e-3))
    losses = {4e-3: float("nan"), 1e-3: 2.0}
    for rate, loss in losses.items():
        file = tmp_path / "runs" / Run("sweep", "chunk", 10, 0, lr=rate).key / "result.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"validation_loss": loss, "rate": rate}))
    assert chosen_rate(config, tmp_path, "chunk") == 1e-3
    file.write_text(json.dumps({"validation_loss": float("inf"), "rate": 1e-3}))
    with pytest.raises(UserError, match="diverged at every learning rate"):
        chosen_rate(config, tmp_path, "chunk")


def test_a_zoo_without_a_split_is_refused(config, tmp_path, monkeypatch):
    from weight_oracle.evaluation import compare as module

    real = module.pick
    monkeypatch.setattr(module, "pick", lambda zoo, split: real(zoo, split)[: 0 if split == "test" else None])
    with pytest.raises(UserError, match="too few targets of the test split.*--test"):
        compare(replace(config, out=str(tmp_path)))


def test_a_run_says_what_is_special_about_it():
    run = Run("bits", "quantised", 0, seed=3, bits=2, canonical=True)
    assert run.key == "bits-quantised-natural-2-bits-canonical-seed-3" and Run(**asdict(run)) == run
    assert Run("sweep", "chunk", 8, lr=0.001).key == "sweep-chunk-8-tokens-seed-0-lr-0.001"
