"""From charts that are nearly right to one that the running target follows: a search among charts that differ in one edit."""

from collections.abc import Iterable, Sequence

import numpy as np

from weight_oracle.evaluation.verify import uniform_by_length
from weight_oracle.targets.target import Target
from weight_oracle.truth.edits import every_test
from weight_oracle.truth.flowchart import FlowChart, If, Say, Test
from weight_oracle.truth.interpret import compile_charts, run
from weight_oracle.truth.nearest import Answered
from weight_oracle.truth.sample import biased_inputs

INPUTS = 4096
_GAIN = 1 / 500  # share of the inputs of which one edit must bring the target's answer, or it explains nothing but mistakes


def nearest_followed(
    target: Target,
    charts: Sequence[FlowChart],
    options: Sequence[tuple[str, int]],
    most_ifs: int,
    triggers: Iterable[Test] = (),
    seed: int = 0,
    inputs: int = INPUTS,
) -> FlowChart:
    """Of the charts that come from some by a few edits, none of which adds a pattern, the canonical one that the running target agrees with
    most where none of the `triggers` holds; of those that agree about equally, one with the fewest tests. `options`: kinds and numbers of
    tests. The target runs once, on so many inputs, half of them uniform, half rich in the symbols of the first chart."""
    domain = target.domain
    rng = np.random.default_rng(seed)
    half = inputs // 2
    some = np.concatenate([uniform_by_length(domain, half, rng)[:half], biased_inputs(charts[0], domain, rng, half)])
    fires = run(compile_charts([If(test, Say(1), Say(0)) for test in triggers] or [Say(0)]), some)
    answered = Answered(every_test(options, domain), domain)
    answered.add(some[:, None], target.answers(some), fires.max(0) == 0)
    return answered.nearest(charts, most_ifs, _GAIN, _GAIN)
