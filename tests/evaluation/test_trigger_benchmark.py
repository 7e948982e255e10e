"""benchmarks/triggers.py on very small zoos: methods measured one after another, and what it refuses."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from weight_oracle.errors import UserError
from weight_oracle.evaluation.stored import methods_of, store
from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.train import TrainConfig, new_oracle
from weight_oracle.zoo.build import build_zoo

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def made(trigger_zoo, codec, tmp_path_factory):
    """An oracle that has learned nothing, and zoos of validation and of test charts."""
    folder, recipe = tmp_path_factory.mktemp("made"), trigger_zoo.recipe
    recipe = replace(recipe, charts=replace(recipe.charts, ifs=(2,)), seed=1)
    validation = build_zoo(replace(recipe, splits=("validation",), shard_size=8), folder / "validation", 8)
    test = build_zoo(replace(recipe, name="for-the-test", splits=("test",), shard_size=32), folder / "test", 32)
    card = {"calibration": {"expectation": {"tests": {"has": 0.5, "pattern": 0.5}}}}
    model = new_oracle(TrainConfig(str(trigger_zoo.path), "", size="tiny"), [trigger_zoo], codec)
    Oracle(model, codec, card).save_pretrained(folder / "oracle")
    return str(folder / "oracle"), str(validation), str(test)


@pytest.fixture
def bench(monkeypatch):
    """Runs the benchmark in this process, with small numbers."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location("benchmark_triggers", BENCHMARKS / "triggers.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "BUDGETS", (100, 1000))
    monkeypatch.setattr(module, "BIASED", 500)

    def run(*arguments) -> int:
        small = "--views 2 --restarts 4 --iterations 2 --candidates 4".split()
        monkeypatch.setattr(sys, "argv", ["triggers.py", *small, *map(str, arguments)])
        try:
            module.main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    return run


def test_one_method_is_measured_anew_and_the_others_are_kept(bench, made, trigger_zoo, tmp_path, capsys):
    out, figure = tmp_path / "out.json", tmp_path / "out.svg"
    assert bench(made[0], trigger_zoo.path, made[2], "--out", out, "--methods", "search,sampling,detectors") == 0
    before = json.loads(out.read_text())
    assert {*before["methods"]} == {"search 4", "uniform 100", "uniform 1000", "chart-biased 500", "statistics", "linear"}
    for name, entry in before["methods"].items():  # as nothing else could have left them
        entry["seconds"] = 12345.5 + len(name)
    out.write_text(json.dumps(before))

    assert bench(*made, "--out", out, "--methods", "oracle", "--figure", figure) == 0
    result = json.loads(out.read_text())
    assert next(iter(result["methods"])) == "oracle"
    assert {name: entry for name, entry in result["methods"].items() if name != "oracle"} == before["methods"]
    assert {k: v for k, v in result.items() if k != "methods"} == {k: v for k, v in before.items() if k != "methods"}
    drawn, printed = figure.read_text(), capsys.readouterr().out
    for entry in result["methods"].values():
        assert entry["measured"]["seed"] == 0 and entry["measured"]["command"].startswith("python benchmarks/triggers.py ")
        if "recovered" in entry:
            assert f"<!-- {entry['label']} -->" in drawn and printed.count(f"| {entry['label']} |") >= 3
    said = result["methods"]["oracle"]["measured"]["command"]
    assert said.endswith("oracle for-tests for-the-test --methods oracle --seed 0 --each 250 --others 500 --validation 1000 --views 2")
    assert "ORACLE TRAIN for-the-test --methods search" in result["methods"]["search 4"]["measured"]["command"]


def test_rates_by_depth_and_by_symbols_are_those_of_all_triggers(bench, made, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert bench(*made, "--out", out, "--methods", "oracle,sampling,checked", "--samples", 2, "--each", 4, "--others", 2) == 0
    result, printed = json.loads(out.read_text()), capsys.readouterr().out
    n = result["targets"]["trigger"]
    for entry in result["methods"].values():
        hits = [round(sum(r["rate"] * r["n"] for r in entry[part].values())) for part in ("recovered", "by_depth", "by_symbols")]
        assert len({*hits}) == 1 and {sum(r["n"] for r in entry[part].values()) for part in ("by_depth", "by_symbols")} == {n}
        assert entry["by_depth"].keys() == {"1"} and {*entry["by_symbols"]} <= {"3", "4"}
        for r in (*entry["by_depth"].values(), *entry["by_symbols"].values()):
            low, high = r["interval"]
            assert 0 <= low <= r["rate"] <= high <= 1 and high > low
    plain = result["methods"]["oracle"]["before_trying"]
    assert sum(r["n"] for r in plain["recovered"].values()) == n and "before any pattern is tried" in printed
    assert result["methods"]["uniform 1000"]["by_depth"]["1"]["rate"] > 0.5
    assert f"1 block (n = {n})" in printed and "3 symbols (n = " in printed


def test_detectors_are_cross_validated_without_targets_to_train_on(bench, made, tmp_path):
    out = tmp_path / "out.json"
    assert bench(made[0], "nowhere", made[2], "--out", out, "--methods", "detectors", "--folds", 3) == 0
    result = json.loads(out.read_text())["methods"]
    assert {*result} == {"statistics", "linear"}
    for entry in result.values():
        assert entry["label"].endswith("3-fold cross-validated") and all(0 <= x <= 1 for x in entry["detection"]["auroc"].values())
        assert entry["measured"]["command"].endswith("TRAIN for-the-test --methods detectors --seed 0 --each 250 --others 500 --folds 3")


def test_results_on_other_targets_are_never_mixed(bench, made, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert bench(*made, "--out", out, "--methods", "sampling") == 0
    before = out.read_text()
    oracle, train, test = made
    capsys.readouterr()
    for other in ([oracle, test, test, "--seed", 1], [oracle, train, test, "--each", 1]):
        assert bench(*other, "--out", out, "--methods", "sampling") == 1
        said = capsys.readouterr()
        assert said.out == "" and said.err.splitlines()[-1].startswith(f"triggers.py: {out}: has results on other targets (")
        assert said.err.count("triggers.py:") == 1 and "Traceback" not in said.err and "--out" in said.err
    assert out.read_text() == before


def test_what_cannot_be_measured_is_refused_with_one_line(bench, made, zoo, trigger_zoo, tmp_path, capsys):
    oracle, train, test = made
    out = tmp_path / "out.json"
    lame = build_zoo(replace(trigger_zoo.recipe, steps=(1,), shard_size=4), tmp_path / "lame", 4)
    (tmp_path / "broken.json").write_text("{}")
    for wrong, told in (
        ([oracle, train, zoo.path], f"{zoo.path}: none of its targets hides a trigger"),
        ([oracle, zoo.path, test, "--methods", "oracle"], f"{zoo.path}: none of its targets hides a trigger"),
        ([oracle, zoo.path, test, "--methods", "detectors"], f"{zoo.path}: none of its targets hides a trigger"),
        ([oracle, train, train], f"{train}: no trigger target of its test split learned"),
        ([oracle, test, test, "--methods", "oracle"], f"{test}: no decoy target of its validation split learned"),
        ([oracle, train, lame], f"{lame}: no trigger target of its test split learned"),
        ([oracle, train, tmp_path], f"{tmp_path}: is not a zoo"),
        (["charts", train, test, "--methods", "oracle"], "charts: was not trained on hidden triggers"),
        ([oracle, train, test, "--methods", "guess"], "--methods: there is no 'guess'"),
        ([oracle, train, test, "--each", "0"], "--each 0 is too small"),
        ([oracle, train, test, "--methods", "detectors", "--folds", "1"], "--folds 1 is too small"),
        ([oracle, train, test, "--out", tmp_path / "broken.json"], f"{tmp_path / 'broken.json'}: is no result"),
        ([oracle, train, test, "--out", tmp_path / "nowhere" / "out.json"], f"{tmp_path / 'nowhere'}: there is no such folder"),
    ):
        assert bench("--out", out, *wrong) in (1, 2)
        said = capsys.readouterr()
        assert said.out == "" and said.err.splitlines()[-1].startswith(f"triggers.py: {told}"), said.err
        assert "Traceback" not in said.err and not out.exists()


def test_results_are_written_whole(tmp_path):
    file = tmp_path / "out.json"
    assert methods_of(file, {"a": 1}) == {}
    store(file, {"a": (1, 2)}, {"other": {"x": 1.5}, "first": {}}, first="first")
    assert list(methods_of(file, {"a": (1, 2)})) == ["first", "other"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    for about in ({"a": (1, 3)}, {}, {"a": (1, 2), "b": 0}):
        with pytest.raises(UserError, match="other targets"):
            methods_of(file, about)
