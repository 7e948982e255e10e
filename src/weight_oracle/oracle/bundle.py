"""The oracles that come with the package, and which of them reads a target."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from weight_oracle.errors import UserError
from weight_oracle.oracle.ask import BUNDLED, Oracle
from weight_oracle.targets.target import Target


def bundled() -> tuple[str, ...]:
    """Their names, the first of which is the one that is loaded where none is asked for."""
    folder = Path(str(files("weight_oracle"))) / "bundled"
    names = sorted(place.name for place in folder.iterdir() if (place / "oracle.json").is_file())
    return BUNDLED, *(name for name in names if name != BUNDLED)


def load_bundled(name: str = BUNDLED, anyway: bool = False) -> Oracle:
    """One of them by name. Raises `UserError` for another name."""
    if name not in bundled():
        raise UserError(f"no bundled oracle is called {name!r}", hint=f"choose among {', '.join(bundled())}", exit_code=2)
    return Oracle.from_pretrained(Path(str(files("weight_oracle"))) / "bundled" / name, anyway)


def oracle_for(
    target: Target | str | Path,
    symbols: Sequence[str] | None = None,
    answers: Sequence[str] | None = None,
    lengths: tuple[int, int] | None = None,
    anyway: bool = False,
) -> tuple[Oracle, Target]:
    """The first bundled oracle that reads a target, and the target. Raises the `UserError` of the first one where none does."""
    refusal: UserError | None = None
    for name in bundled():
        oracle = load_bundled(name, anyway)
        try:
            return oracle, oracle.load(target, symbols, answers, lengths)
        except UserError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal
