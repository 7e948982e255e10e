"""What a command gives back, and how it shows that it is at work."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from weight_oracle.errors import UserError

if TYPE_CHECKING:
    from weight_oracle.oracle.ask import Oracle


@dataclass(frozen=True)
class Output:
    """What `--json` prints, and what is printed without it."""

    data: dict[str, Any]
    text: str


@contextmanager
def progress_bar(what: str, unit: str) -> Iterator[Callable[..., None]]:
    """A bar on stderr, on terminals only; yields `update(done, total, numbers)`, the numbers (a dict that may hold a `loss`) optional."""
    with tqdm(desc=what, unit=unit, disable=None, dynamic_ncols=True, mininterval=0.5, file=sys.stderr) as bar:

        def update(done: int, total: int, numbers: dict | None = None) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if numbers and "loss" in numbers:
                bar.set_postfix(loss=numbers["loss"])

        yield update


@contextmanager
def stages(unit: str = "target") -> Iterator[Callable[[str, int, int], None]]:
    """One bar for every stage of a long command; yields `update(stage, done, total)`."""
    with ExitStack() as bars:
        updates: dict[str, Callable[..., None]] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in updates:
                updates[stage] = bars.enter_context(progress_bar(stage, unit))
            updates[stage](done, total)

        yield update


def parse_range(text: str | None, separator: str, option: str, hint: str) -> tuple[int, int] | None:
    if text is None:
        return None
    low, _, high = text.partition(separator)
    if not (low.isdecimal() and high.isdecimal() and int(low) <= int(high) and (separator == "-" or int(low) < int(high))):
        raise UserError(f"{option} {text!r} is not a range", hint=hint, exit_code=2)
    return int(low), int(high)


def load_oracle(path: str | None, anyway: bool = False) -> "Oracle":
    """As `oracle.bundle.load_oracle`; without a path, or for `bundled`, the first bundled one."""
    from weight_oracle.oracle.bundle import load_bundled
    from weight_oracle.oracle.bundle import load_oracle as load

    return load_bundled(anyway=anyway) if path in (None, "bundled") else load(path, anyway)
