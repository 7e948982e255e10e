"""Networks that a trained one becomes when its position embeddings are permuted, and that still do what their chart then says.

With one block every order of the places will do (see `truth.places`). With more, a position may only ask earlier ones, so an order must be
tried: it counts if the network, run on inputs of all kinds, follows the moved chart as targets that learned theirs do.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Int

from weight_oracle.targets.train import answers
from weight_oracle.truth.flowchart import FlowChart, Test
from weight_oracle.truth.interpret import compile_charts, run
from weight_oracle.truth.places import another_order, movable, moved, moved_test
from weight_oracle.truth.sample import chart_inputs
from weight_oracle.truth.triggers import firing_inputs, near_misses, trigger_of, without
from weight_oracle.zoo.build import LEARNED
from weight_oracle.zoo.store import Zoo

_POSITIONS = "transformer.wpe.weight"
_INPUTS = 96  # of each kind: chart-biased, such that fire the trigger, near misses


def followed_orders(
    zoo: Zoo, wanted: Int[np.ndarray, " N"], tries: int, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> list[Int[np.ndarray, "k n"]]:
    """For each target at positions `wanted` of a zoo, those of `tries` random orders of its places under which it follows the moved chart
    on 99 % of the inputs of each kind. None for targets without a hidden `pattern`, with inputs of several lengths, or of another family
    than GPT-2's."""
    domain, rng, n = zoo.recipe.domain, np.random.default_rng(seed), zoo.recipe.domain.lengths[1]
    found: dict[int, list[np.ndarray]] = {int(i): [] for i in wanted}
    triggers = {i: trigger_of(zoo.charts[i], domain) for i in found}
    useful = [i for i, t in triggers.items() if t is not None and t.kind == "pattern" and movable(zoo.charts[i], domain)]
    done = 0
    for here, stack in zoo.stacks(np.array(useful, np.int64)):
        done += len(here)
        if progress:
            progress(done, len(useful))
        if stack.family != "gpt2":
            continue
        shape = zoo.shape(zoo.truths[here[0]]["shard"])
        for _ in range(tries):
            asked = [(zoo.charts[i], test) for i in here if (test := triggers[int(i)]) is not None]
            orders = [another_order(chart, n, rng) for chart, _ in asked]
            charts = [moved(chart, order) for (chart, _), order in zip(asked, orders, strict=True)]
            tests = [moved_test(test, order) for (_, test), order in zip(asked, orders, strict=True)]
            inputs = np.stack([_inputs(zoo, *pair, rng) for pair in zip(charts, tests, strict=True)])
            position = stack.tensors[_POSITIONS].clone()
            for row, order in enumerate(orders):
                position[row, 1 : n + 1] = position[row, 1 + torch.from_numpy(order)]
            said = answers(stack.tensors | {_POSITIONS: position}, shape, stack.relu, [torch.from_numpy(inputs)]).numpy()
            right = (said == run(compile_charts(charts), inputs)).reshape(len(here), 3, -1).mean(2).min(1)
            for i, order, share in zip(here, orders, right, strict=True):
                if share >= LEARNED:
                    found[int(i)].append(order)
    return [np.stack(found[int(i)]) if found[int(i)] else np.zeros((0, n), np.int64) for i in wanted]


def _inputs(zoo: Zoo, chart: FlowChart, trigger: Test, rng: np.random.Generator) -> np.ndarray:
    domain, base = zoo.recipe.domain, without(chart, trigger)
    kinds = chart_inputs(base, domain, rng, _INPUTS), firing_inputs(base, trigger, domain, rng, _INPUTS)
    return np.concatenate([*kinds, near_misses(base, trigger, domain, rng, _INPUTS)])
