"""The inputs a target is asked about, and the names of its symbols."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int8

from weight_oracle.errors import UserError

RESERVED = frozenset("say if else has first last at count before contains pattern is >= .".split())
_SYMBOL_LETTERS = "abcdefghijklmnotuvwxyz"
_ANSWER_LETTERS = "pqrs"
_MAX_ENUMERATED = 20_000_000


@dataclass(frozen=True)
class Domain:
    """All strings over `symbols` input symbols with a length in `lengths` (both ends included), and `answers` possible answers.

    *Uniform* over the domain means: length uniform, then symbols uniform. Raises `UserError` for an impossible domain.
    """

    symbols: int
    answers: int
    lengths: tuple[int, int]

    def __post_init__(self):
        lo, hi = self.lengths
        if not 1 <= self.symbols <= 127 or not 1 <= self.answers <= 127:
            raise UserError(f"a domain needs 1 to 127 symbols and 1 to 127 answers, not {self.symbols} and {self.answers}")
        if not 1 <= lo <= hi <= 64:
            raise UserError(f"lengths {lo}-{hi} are not a range", hint="write them as LO-HI with 1 <= LO <= HI <= 64")

    @property
    def all_lengths(self) -> range:
        return range(self.lengths[0], self.lengths[1] + 1)

    @property
    def size(self) -> int:
        """Number of inputs."""
        return sum(self.symbols**length for length in self.all_lengths)

    def enumerate(self) -> Int8[np.ndarray, "inputs hi"]:
        """Every input once, by length and then lexicographically, padded with -1. Raises `UserError` above 20 million inputs."""
        if self.size > _MAX_ENUMERATED:
            raise UserError(f"a domain of {self.size:,} inputs is too large to list", hint="use shorter lengths or fewer symbols")
        hi = self.lengths[1]
        blocks = []
        for length in self.all_lengths:
            block = np.full((self.symbols**length, hi), -1, np.int8)
            digits = np.indices((self.symbols,) * length, dtype=np.int8).reshape(length, -1)
            block[:, :length] = digits.T
            blocks.append(block)
        return np.concatenate(blocks)

    def sample(self, rng: np.random.Generator, n: int) -> Int8[np.ndarray, "n hi"]:
        """`n` inputs drawn uniformly (length, then symbols), padded with -1."""
        inputs = rng.integers(0, self.symbols, (n, self.lengths[1]), dtype=np.int8)
        return self.pad(inputs, rng.integers(self.lengths[0], self.lengths[1] + 1, n))

    def pad(self, inputs: Int8[np.ndarray, "n hi"], lengths: np.ndarray) -> Int8[np.ndarray, "n hi"]:
        """`inputs` with everything from position `lengths[i]` on replaced by -1, in place."""
        if self.lengths[0] < self.lengths[1]:
            inputs[np.arange(self.lengths[1]) >= lengths[:, None]] = -1
        return inputs


@dataclass(frozen=True)
class Names:
    """What the slots are called in text. Raises `UserError` for a name that a flow chart could not be written with."""

    symbols: tuple[str, ...]
    answers: tuple[str, ...]

    def __post_init__(self):
        for what, names in (("input symbol", self.symbols), ("answer", self.answers)):
            for name in names:
                if not name or name.split() != [name] or ":" in name:
                    raise UserError(f"{name!r} cannot name an {what}", hint="a name is one word without ':'")
                if name in RESERVED:
                    raise UserError(f"{name!r} cannot name an {what}: it is a word of the chart language", hint="rename that token")
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise UserError(f"the {what} {twice!r} is named twice", hint="give every one its own name")


def default_names(symbols: int, answers: int) -> Names:
    """Inputs a…o then t…z, answers p, q, r, s; beyond those a1, b1, … and p1, q1, …"""
    return Names(_spell(_SYMBOL_LETTERS, symbols), _spell(_ANSWER_LETTERS, answers))


def _spell(letters: str, n: int) -> tuple[str, ...]:
    return tuple(letters[i % len(letters)] + (str(i // len(letters)) if i >= len(letters) else "") for i in range(n))


DEFAULT_NAMES = default_names(127, 127)
