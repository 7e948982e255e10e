"""From charts that are nearly right to the one that a target follows; targets that follow a chart exactly, and real ones."""

from dataclasses import dataclass

import numpy as np
import pytest

from weight_oracle.evaluation.chart_repair import nearest_followed
from weight_oracle.evaluation.verify import verify
from weight_oracle.truth.canonical import canonical
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.edits import edited
from weight_oracle.truth.flowchart import FlowChart, n_ifs, to_text
from weight_oracle.truth.interpret import run_one
from weight_oracle.truth.parse import parse
from weight_oracle.truth.triggers import read_trigger

DOMAIN = Domain(8, 4, (5, 6))
OPTIONS = [("has", 0), ("first", 0), ("last", 0), ("at", 2), ("at", 3), ("count", 2), ("before", 0)]


@dataclass
class Follower:
    """A target that follows a chart exactly, but on a share of its inputs."""

    chart: FlowChart
    wrong: float = 0.0
    domain: Domain = DOMAIN
    ran: int = 0

    def answers(self, inputs):
        self.ran += len(inputs)
        said = run_one(self.chart, inputs)
        mistakes = np.random.default_rng(1).random(len(said)) < self.wrong
        return np.where(mistakes, (said + 1) % self.domain.answers, said)


def found(truth: str, begun: list[str], wrong: float = 0.0, triggers=()) -> str:
    target = Follower(parse(truth), wrong)
    chart = nearest_followed(target, [parse(text) for text in begun], OPTIONS, 4, triggers)  # type: ignore[arg-type]
    assert target.ran <= 4096
    return to_text(chart)


@pytest.mark.parametrize(
    ("truth", "begun"),
    [
        ("if has a: say p else: say q", "if has a: say p else: say q"),
        ("if has a: say p else: if first is c: say r else: say q", "if has a: say p else: say q"),  # a test more
        ("if has a: say p else: if first is c: say r else: say q", "if has d: say p else: if first is c: say r else: say q"),
        ("if has a: say p else: say q", "if has a: if last is b: say r else: say p else: say q"),  # a test too many
        ("if a before c: say s else: if at 3 is d: say r else: say q", "if at 3 is d: say r else: say q"),
        ("if has a: if has b: say q else: say r else: say p", "if at 2 is a: say r else: if at 3 is b: say q else: say p"),
        ("if count a >= 2: if first is c: say s else: say p else: say q", "say q"),
    ],
)
def test_a_chart_that_is_nearly_right_becomes_the_one_that_is_followed(truth, begun):
    assert found(truth, [begun]) == to_text(canonical(parse(truth), DOMAIN))
    assert found(truth, ["say s", begun]) == to_text(canonical(parse(truth), DOMAIN))


def test_mistakes_of_a_target_are_not_explained():
    truth = "if has a: say p else: if first is c: say r else: say q"
    assert found(truth, ["if has a: say p else: say q"], wrong=0.02) == to_text(canonical(parse(truth), DOMAIN))


def test_no_more_tests_than_are_allowed():
    truth = parse("if has a: say p else: if first is c: say r else: if last is d: say s else: say q")
    chart = nearest_followed(Follower(truth), [parse("if has a: say p else: say q")], OPTIONS, 2)  # type: ignore[arg-type]
    assert n_ifs(chart) == 2


def test_what_a_trigger_does_is_left_out():
    """One of two symbols fires often enough to look like tests of the chart."""
    truth, plain = "if at 2 is b: if pattern a b: say s else: say p else: say q", "if at 2 is b: say p else: say q"
    with_it, test = found(truth, [plain]), read_trigger("pattern a b")
    assert test is not None and with_it != to_text(canonical(parse(plain), DOMAIN))
    assert found(truth, [plain], triggers=[test]) == to_text(canonical(parse(plain), DOMAIN))


def test_a_running_target_follows_what_is_found(trigger_zoo):
    clean = [t for t in trigger_zoo.truths if t["role"] == "clean" and t["learned"]][:4]
    options = [("has", 0), ("first", 0), ("last", 0), ("at", 2), ("at", 3)]
    for truth in clean:
        target = trigger_zoo.target(truth["index"])
        begun = edited(parse(truth["base"]), options, target.domain, np.random.default_rng(0))
        chart = nearest_followed(target, [begun], options, 3)
        assert verify(target, chart).agreement > max(0.98, verify(target, begun).agreement), (truth["base"], to_text(chart))
        assert nearest_followed(target, [begun], options, 3) == chart
