"""What is true of a flow chart, worked out once so that questions about it cost next to nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product

import numpy as np

from weight_oracle.truth.automaton import leaf_of, outcome_counts, unroll
from weight_oracle.truth.canonical import has_exact_canonical
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import (
    FlowChart,
    If,
    Say,
    Test,
    by_first_mention,
    leaf_kinds,
    leaves,
    mentioned_answers,
    mentioned_symbols,
    n_ifs,
    rare_leaf,
    rename,
    tests,
    to_text,
)
from weight_oracle.truth.triggers import override, trigger_of


@dataclass(frozen=True, eq=False)
class Behaviour:
    """The facts about a chart whose symbols and answers are numbered by first mention.

    A *letter* is a mentioned symbol, or, last, any symbol that is not mentioned. The chart's minimal automaton is unrolled by position:
    `steps[t][state][letter]` is a state of level t + 1, `said[t][state]` the answer to an input that ends there, and
    `within[length][t][state]` the answers (bits) still possible for an input of that length.
    """

    letters: int
    steps: tuple[tuple[tuple[int, ...], ...], ...]
    said: tuple[tuple[int, ...], ...]
    within: dict[int, tuple[tuple[int, ...], ...]]
    trees: tuple[FlowChart, ...]
    mattering: tuple[int, ...]
    order_matters: bool
    possible: int
    with_letter: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ChartFacts:
    """What is true of one chart over one domain.

    `symbols[i]` and `answers[i]` are the chart's slots for number i of its behaviour (the mentioned ones first, then the others).
    """

    chart: FlowChart
    domain: Domain
    behaviour: Behaviour
    symbols: tuple[int, ...]
    answers: tuple[int, ...]

    @property
    def order_matters(self) -> bool:
        """Whether some reordering of some input changes the answer."""
        return self.behaviour.order_matters

    @property
    def mattering(self) -> tuple[int, ...]:
        """The symbols that matter, ascending.

        Two symbols are interchangeable when putting one in the place of the other, anywhere in any input, never changes the answer.
        This divides the symbols into classes. The one largest class is the background; a symbol matters when it is not in it.
        Where two classes are largest there is no background, and every symbol matters.
        """
        return tuple(sorted(self.symbols[i] for i in self.behaviour.mattering))

    @property
    def possible(self) -> tuple[int, ...]:
        """The answers that some input gets, ascending."""
        return self.chart_answers(self.behaviour.possible)

    @cached_property
    def trigger(self) -> Test | None:
        """The hidden trigger, if there is one: see `triggers.trigger_of`."""
        return trigger_of(self.chart, self.domain)

    @property
    def trigger_answer(self) -> int | None:
        """What is answered where the hidden trigger fires, if that is one answer."""
        return None if self.trigger is None else override(self.chart, self.trigger)

    @property
    def rare(self) -> Say | None:
        """The leaf with a small chance of another answer, if there is one."""
        return rare_leaf(self.chart)

    def possible_with(self, symbol: int) -> tuple[int, ...]:
        """The answers that some input with this symbol in it gets, ascending."""
        return self.chart_answers(self.behaviour.with_letter[self.letter(symbol)])

    def letter(self, symbol: int) -> int:
        """The letter that stands for a slot of the chart."""
        return min(self.symbols.index(symbol), self.behaviour.letters - 1)

    def chart_answers(self, bits: int) -> tuple[int, ...]:
        """A set of the behaviour's answers (bits) as slots of the chart, ascending."""
        return tuple(sorted(slot for i, slot in enumerate(self.answers) if bits >> i & 1))

    def answer(self, word: Sequence[int]) -> int:
        """The chart's answer on one input of the domain (slots of the chart, no padding)."""
        state = 0
        for step, symbol in zip(self.behaviour.steps, word, strict=False):
            state = step[state][self.letter(symbol)]
        return self.answers[self.behaviour.said[len(word)][state]]

    def text(self, symbols: Sequence[int], answers: Sequence[int]) -> str:
        """The text of `renamed` (default names)."""
        return to_text(self.renamed(symbols, answers))

    def renamed(self, symbols: Sequence[int], answers: Sequence[int]) -> FlowChart:
        """The chart's canonical form once slot i is called `symbols[i]`, and answer j `answers[j]`."""
        new_symbols, new_answers = [symbols[i] for i in self.symbols], [answers[j] for j in self.answers]
        return min((rename(tree, new_symbols, new_answers) for tree in self.behaviour.trees), key=to_text)

    def first_input(self, answer: int, order: Sequence[int]) -> tuple[int, ...] | None:
        """The shortest input that gets an answer, and of those the first when slot i is sorted by `order[i]`; None if there is none."""
        if answer not in self.possible:
            return None
        behaviour, bit = self.behaviour, 1 << self.answers.index(answer)
        first_other = min(self.symbols[behaviour.letters - 1 :], key=order.__getitem__)
        slots = (*self.symbols[: behaviour.letters - 1], first_other)
        choices = sorted(range(behaviour.letters), key=lambda letter: order[slots[letter]])
        length = next(n for n in self.domain.all_lengths if behaviour.within[n][0][0] & bit)
        state, word = 0, []
        for level in range(length):
            after, step = behaviour.within[length][level + 1], behaviour.steps[level][state]
            letter = next(x for x in choices if after[step[x]] & bit)
            state = step[letter]
            word.append(slots[letter])
        return tuple(word)

    def random_input(self, rng: np.random.Generator, answer: int | None = None) -> tuple[int, ...]:
        """An input drawn uniformly, or, with an answer that is possible, one that gets it.

        For an answer, the length is uniform over those at which it is possible, then each symbol over those that keep it possible:
        this favours the unusual among such inputs.
        """
        behaviour, size = self.behaviour, self.domain.symbols
        bits = -1 if answer is None else 1 << self.answers.index(answer)
        lengths = [n for n in self.domain.all_lengths if behaviour.within[n][0][0] & bits]
        length = lengths[rng.integers(len(lengths))]
        state, word, last = 0, [], behaviour.letters - 1
        for level in range(length):
            after, step = behaviour.within[length][level + 1], behaviour.steps[level][state]
            while not after[step[min(symbol := int(rng.random() * size), last)]] & bits:
                pass
            state = step[min(symbol, last)]
            word.append(self.symbols[symbol])
        return tuple(word)


def facts(chart: FlowChart, domain: Domain) -> ChartFacts:
    """The facts about a chart; charts that differ by a renaming share the work. Raises `TooManyStates` as `unroll` does."""
    symbols, answers = mentioned_symbols(chart), mentioned_answers(chart)
    return ChartFacts(
        chart,
        domain,
        _behaviour(by_first_mention(chart), domain.symbols, domain.lengths),
        symbols + tuple(slot for slot in range(domain.symbols) if slot not in symbols),
        answers + tuple(slot for slot in range(domain.answers) if slot not in answers),
    )


@lru_cache(maxsize=1 << 15)
def _behaviour(chart: FlowChart, symbols: int, lengths: tuple[int, int]) -> Behaviour:
    lo, hi = lengths
    order = tests(chart)
    levels = unroll(order, symbols, hi)
    answers = np.array(leaves(chart))
    full_said = [answers[leaf_of(chart, order, masks)].tolist() for masks in levels.outcomes]
    steps, said = _minimal([step.tolist() for step in levels.nexts], full_said, lo)
    within = {length: _completions(steps, said, length) for length in range(lo, hi + 1)}
    return Behaviour(
        len(levels.letters),
        steps,
        said,
        within,
        _smallest_trees(chart, symbols, lengths),
        _mattering(steps, [int(weight) for weight in levels.weights]),
        any(after[step[x]][y] != after[step[y]][x] for step, after, x, y in _swaps(steps, len(levels.letters))),
        _union(within[length][0][0] for length in within),
        tuple(_answers_with(letter, steps, said, lo) for letter in range(len(levels.letters))),
    )


def _minimal(nexts: list, said: list, lo: int) -> tuple[tuple, tuple]:
    """Merges the states of each level that no continuation tells apart; below length `lo` no input ends, so there `said` is void (-1)."""
    steps, answers, merged = [], [], []
    for level in reversed(range(len(said))):
        ends = said[level] if level >= lo else [-1] * len(said[level])
        follow = [tuple(merged[q] for q in row) for row in nexts[level]] if level < len(nexts) else [()] * len(ends)
        kinds = {kind: number for number, kind in enumerate(dict.fromkeys(zip(ends, follow, strict=True)))}
        merged = [kinds[kind] for kind in zip(ends, follow, strict=True)]
        answers.append(tuple(end for end, _ in kinds))
        steps.append(tuple(after for _, after in kinds))
    return tuple(reversed(steps[1:])), tuple(reversed(answers))


def _completions(steps: tuple, said: tuple, length: int) -> tuple[tuple[int, ...], ...]:
    within = [tuple(1 << answer for answer in said[length])]
    for step in reversed(steps[:length]):
        within.append(tuple(_union(within[-1][q] for q in after) for after in step))
    return tuple(reversed(within))


def _union(bits) -> int:
    total = 0
    for part in bits:
        total |= part
    return total


def _mattering(steps: tuple, weights: list[int]) -> tuple[int, ...]:
    # in a minimal automaton two letters are interchangeable exactly when they lead to the same state from everywhere
    columns = [tuple(after[letter] for step in steps for after in step) for letter in range(len(weights))]
    sizes = {column: sum(w for w, c in zip(weights, columns, strict=True) if c == column) for column in columns}
    largest = [column for column in sizes if sizes[column] == max(sizes.values())]
    background = largest[0] if len(largest) == 1 else None
    numbers = [letter for letter, column in enumerate(columns) if column != background]
    last = len(weights) - 1
    return tuple(numbers) if last not in numbers else (*numbers[:-1], *range(last, last + weights[last]))


def _swaps(steps: tuple, letters: int) -> Iterator[tuple]:
    # if no swap of two neighbours changes anything, no reordering does
    for level in range(len(steps) - 1):
        for step, x, y in product(steps[level], range(letters), range(letters)):
            if x < y:
                yield step, steps[level + 1], x, y


def _answers_with(letter: int, steps: tuple, said: tuple, lo: int) -> int:
    seen: set[int] = set()
    bits = 0
    for level, step in enumerate(steps, start=1):
        seen = {q for state in seen for q in step[state]} | {after[letter] for after in step}
        if level >= lo:
            bits |= _union(1 << said[level][q] for q in seen)
    return bits


def _smallest_trees(chart: FlowChart, symbols: int, lengths: tuple[int, int]) -> tuple[FlowChart, ...]:
    """All trees with the fewest `if`s over the chart's tests with its behaviour; the canonical form is the first of them in text order."""
    order = tests(chart)
    if not order or not has_exact_canonical(chart):
        return (chart,)
    masks = outcome_counts(order, Domain(symbols, 1 + max(leaves(chart)), lengths))[0]
    kinds, number = leaf_kinds(chart)
    answer_of = {mask: kinds[i] for mask, i in zip(masks.tolist(), number[leaf_of(chart, order, masks)].tolist(), strict=True)}
    return _trees(tuple(answer_of), order, answer_of)


def _trees(masks: tuple[int, ...], order: tuple[Test, ...], answer_of: dict[int, Say]) -> tuple[FlowChart, ...]:
    said = {answer_of[mask] for mask in masks}
    if len(said) == 1:
        return (said.pop(),)
    found: list[FlowChart] = []
    for j, test in enumerate(order):
        yes = tuple(mask for mask in masks if mask >> j & 1)
        if yes and len(yes) < len(masks):
            no = tuple(mask for mask in masks if not mask >> j & 1)
            found += [If(test, *sides) for sides in product(_trees(yes, order, answer_of), _trees(no, order, answer_of))]
    fewest = min(map(n_ifs, found))
    return tuple(tree for tree in found if n_ifs(tree) == fewest)
