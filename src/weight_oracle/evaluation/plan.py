"""Which oracles are trained to compare encodings, and in which order, so that what is there after a while is already of use."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from weight_oracle.errors import UserError
from weight_oracle.oracle.model import ENCODERS
from weight_oracle.oracle.train import AUGMENTED

RAW = tuple(name for name in ENCODERS if name != "atoms")
SIZED = ("chunk", "learned", "atoms")  # also compared at other numbers of weight tokens
TOKENS = (8, 128)
BITS, MAIN_BITS = (8, 2), 4
SHAKEN = ("chunk", "learned")  # also trained with augmentation
VARIANTS = ("memorise", "tokens", "bits", "canonical", "augment", "natural", "hints")
MEMORISED = 100  # targets


@dataclass(frozen=True)
class Run:
    """One oracle to train. `purpose`: "sweep" (of the learning rate), "main", or one of `VARIANTS`; `lr` None: what the sweep chose."""

    purpose: str
    encoding: str
    tokens: int  # 0: the natural count
    seed: int = 0
    bits: int = MAIN_BITS
    canonical: bool = False
    augment: bool = False
    hints: bool = False
    lr: float | None = None

    @property
    def variant(self) -> str:
        """What is the same in runs that differ by their seed."""
        tokens = f"{self.tokens}-tokens" if self.tokens else "natural"
        bits = f"{self.bits}-bits" if self.encoding == "quantised" else ""
        marks = (name for name in ("canonical", "augment", "hints") if getattr(self, name))
        return "-".join(filter(None, (self.purpose, self.encoding, tokens, bits, *marks)))

    @property
    def key(self) -> str:
        """The name of its folder."""
        return f"{self.variant}-seed-{self.seed}" + (f"-lr-{self.lr:g}" if self.lr is not None else "")


def plan(encodings: Sequence[str], tokens: int, seeds: Sequence[int], rates: Sequence[float], variants: Sequence[str]) -> list[Run]:
    """All runs in order: the sweeps, the main runs of the first seed, a check that `chunk` can memorise, the other seeds, the variants of
    one seed each. Raises `UserError` for unknown names and for nothing to do."""
    _known("encoding", encodings, tuple(ENCODERS))
    _known("variant", variants, VARIANTS)
    if not (encodings and seeds and rates):
        raise UserError("nothing to compare", hint="give encodings, seeds and learning rates", exit_code=2)
    if tokens < 1:
        raise UserError(f"--tokens {tokens}: a target has at least one weight token", hint="give 1 or more", exit_code=2)
    if wrong := [rate for rate in rates if not 0 < rate < math.inf]:
        raise UserError(f"a learning rate of {wrong[0]:g} teaches nothing", hint="give rates above 0", exit_code=2)
    if wrong := [seed for seed in seeds if not 0 <= seed < 1 << 32]:
        raise UserError(f"{wrong[0]} is no seed", hint="give whole numbers from 0 to 2^32 - 1", exit_code=2)
    for what, given in (("seed", seeds), ("learning rate", rates)):
        if len(set(given)) < len(given):
            raise UserError(f"a {what} is given twice: {', '.join(map(str, given))}", exit_code=2)
    rates = rates if len(rates) > 1 else ()
    sweep = [Run("sweep", name, tokens, seeds[0], lr=rate) for name in encodings for rate in rates]
    first, *rest = ([Run("main", name, tokens, seed) for name in encodings] for seed in seeds)
    own = lambda names: [Run("main", name, tokens, seeds[0]) for name in encodings if name in names]  # noqa: E731
    more = {
        "memorise": [replace(run, purpose="memorise") for run in own(("chunk",))],
        "tokens": [replace(run, purpose="tokens", tokens=n) for n in TOKENS if n != tokens for run in own(SIZED)],
        "bits": [replace(run, purpose="bits", bits=n) for n in BITS for run in own(("quantised",))],
        "canonical": [replace(run, purpose="canonical", canonical=True) for run in own(RAW)],
        "augment": [replace(run, purpose="augment", augment=True) for run in own(set(SHAKEN) & set(AUGMENTED))],
        "natural": [replace(run, purpose="natural", tokens=0) for run in own(ENCODERS)],
        "hints": [replace(run, purpose="hints", hints=True) for run in own(("atoms",))],
    }
    chosen = {name: runs for name, runs in more.items() if name in variants}
    last = [run for name in VARIANTS[1:] for run in chosen.get(name, [])]
    return [*sweep, *first, *chosen.get("memorise", []), *(run for part in rest for run in part), *last]


def _known(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [name for name in given if name not in known]:
        raise UserError(f"there is no {what} called {unknown[0]!r}", hint=f"choose among {', '.join(known)}", exit_code=2)
    if len(set(given)) < len(given):
        raise UserError(f"an {what} is given twice: {', '.join(given)}", exit_code=2)
