"""The fit of the scaling curves, on data that follow a known law."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytest.importorskip("scipy")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


laws, scaling = load("laws"), load("scaling")


@pytest.mark.parametrize(("floor", "scale", "power"), [(0.2, 300.0, 0.5), (0.0, 1e4, 0.3), (0.05, 1e12, 1.2)])
def test_a_known_law_is_found(floor, scale, power):
    x = scale * np.array([1.0, 2.0, 4.0, 8.0, 30.0, 100.0])
    found = laws.law(x, laws.predicted(x, floor, scale, power))
    assert np.allclose(found, (floor, scale, power), rtol=0.02, atol=2e-3)


def test_intervals_hold_the_truth_and_grow_with_the_distance():
    x = np.geomspace(100, 3000, 6)
    rng = np.random.default_rng(1)
    tokens = np.full(200, 10)
    points = []
    for loss in laws.predicted(x, 0.1, 400.0, 0.8):
        nats = tokens * loss * np.exp(rng.normal(0, 0.3, 200) - 0.045)
        points.append({"loss": float(nats.sum() / tokens.sum()), "per_target": {"nats": nats.tolist(), "tokens": tokens.tolist()}})
    found = laws.curve(points, x, noise=0.02, resamples=60)
    assert found["power"]["interval"][0] < 0.8 < found["power"]["interval"][1]
    ten, hundred = (found["times_as_much"][k]["interval"] for k in ("10", "100"))
    assert ten[0] < laws.predicted(x[-1] * 10, 0.1, 400.0, 0.8) < ten[1]
    assert hundred[0] <= ten[0] and found["largest_residual"] < 0.2


def test_every_curve_has_five_points_and_they_are_distinct():
    for points in scaling.CURVES.values():
        assert len(set(points)) >= laws.LEAST
    assert scaling.AHEAD.steps > max(p.steps for p in scaling.CURVES["compute"])
