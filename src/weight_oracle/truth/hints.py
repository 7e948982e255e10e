"""What a chart says of each symbol, as yes or no: a second lesson for the weight tokens that stand for symbols."""

import numpy as np
from jaxtyping import Bool

from weight_oracle.truth.flowchart import ANY, KINDS, FlowChart, If, Say

_PLACED = {"before": 2, "contains": 12, "pattern": 12}  # kinds whose variants are the places in a test
_NUMBERS = {"at": 12, "count": 12} | _PLACED  # how many variants a kind has; the others have one
_START = dict(zip(KINDS, np.cumsum([0, *(_NUMBERS.get(kind, 1) for kind in KINDS)]).tolist(), strict=False))
_TESTS = sum(_NUMBERS.get(kind, 1) for kind in KINDS)


def n_hints(answers: int) -> int:
    """Every test a symbol can be in, whether it is in the first one, and each answer that follows at once when its test is true or not."""
    return _TESTS + 1 + 2 * answers


def pattern_places(n: int) -> slice:
    """Where among the hints of a symbol stands at which of the first `n` places of a pattern it is."""
    return slice(_START["pattern"], _START["pattern"] + min(n, _PLACED["pattern"]))


def hints(chart: FlowChart, symbols: int, answers: int) -> Bool[np.ndarray, "symbols hints"]:
    """One row for each symbol; see `n_hints`. Variants are the numbers of tests, or the places in them; what is beyond 12 counts as 12."""
    found = np.zeros((symbols, n_hints(answers)), bool)

    def visit(node: FlowChart, first: bool) -> None:
        if isinstance(node, Say):
            return
        assert isinstance(node, If)
        test = node.test
        for place, symbol in enumerate(test.symbols):
            if symbol == ANY:
                continue
            variant = place if test.kind in _PLACED else test.number - 1 if test.kind in _NUMBERS else 0
            variant = min(variant, _NUMBERS.get(test.kind, 1) - 1)
            found[symbol, _START[test.kind] + variant] = True
            found[symbol, _TESTS] |= first
            for side, branch in enumerate((node.then, node.other)):
                if isinstance(branch, Say):
                    found[symbol, _TESTS + 1 + side * answers + branch.answer] = True
        visit(node.then, False)
        visit(node.other, False)

    visit(chart, True)
    return found
