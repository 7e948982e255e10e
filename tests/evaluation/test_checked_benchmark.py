"""benchmarks/checked.py on a very small zoo: an oracle that has learned nothing, whose charts are mended by running the targets."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from weight_oracle.oracle.ask import Oracle

FILE = Path(__file__).parents[2] / "benchmarks" / "checked.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("benchmark_checked", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_checking_mends_what_is_read_and_results_of_several_zoos_stay(bench, oracle, codec, zoo, tmp_path, capsys):
    tests = {"has": 0.5, "first": 0.2, "last": 0.2, "at 2": 0.1, "at 3": 0.1}
    card = {"calibration": {"expectation": {"tests": tests}}}
    Oracle(oracle, codec, card, anyway=True).save_pretrained(tmp_path / "oracle")
    out = tmp_path / "checked.json"
    out.write_text('{"another": 1}')
    config = bench.Config(str(tmp_path / "oracle"), str(zoo.path), targets=6, samples=2, split="train", out=str(out))
    bench.main(config)
    assert "6 targets of" in capsys.readouterr().out
    stored = json.loads(out.read_text())
    found = stored[zoo.recipe.name]
    shares = {way: result["share"] for way, result in found["same_99"].items()}
    assert stored["another"] == 1 and tuple(shares) == bench.WAYS and found["targets"] == 6
    assert shares["checked"] >= max(shares["weights alone"], shares["the best that is said"]) and shares["checked"] > 0.5
    assert len(found["wrong"]) == round(6 * (1 - shares["checked"]))


def test_a_zoo_without_such_targets_is_refused(bench, oracle, codec, zoo, monkeypatch):
    monkeypatch.setattr(bench, "pick", lambda *_: np.zeros(0, int))
    with pytest.raises(SystemExit, match="no target of the test split"):
        bench.measure(Oracle(oracle, codec, {"calibration": {}}), zoo, bench.Config("ORACLE", "ZOO"))
