"""The oracles that come with the package, and which of them reads a target."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from weight_oracle.errors import UserError
from weight_oracle.oracle.ask import BUNDLED, Oracle
from weight_oracle.targets.safe import read_json
from weight_oracle.targets.target import Target


def bundled() -> tuple[str, ...]:
    """Their names: first the one that is loaded where none is asked for, then those that read fewer lengths before those that read more."""
    places = [place for place in Path(str(files("weight_oracle"))).glob("bundled/*") if (place / "oracle.json").is_file()]
    reads = {place.name: read_json(place / "config.json")["encoder"]["lengths"] for place in places}
    return BUNDLED, *sorted(reads.keys() - {BUNDLED}, key=lambda name: (reads[name][1] - reads[name][0], name))


def load_bundled(name: str = BUNDLED, anyway: bool = False) -> Oracle:
    """One of them by name. Raises `UserError` for another name."""
    if name not in bundled():
        raise UserError(f"no bundled oracle is called {name!r}", hint=f"choose among {', '.join(bundled())}", exit_code=2)
    return Oracle.from_pretrained(Path(str(files("weight_oracle"))) / "bundled" / name, anyway)


def load_oracle(path: str, anyway: bool = False) -> Oracle:
    """The oracle in a folder, or a bundled one by its name. `anyway`: it answers even if it is blind."""
    if path in bundled() and not Path(path).exists():
        return load_bundled(path, anyway)
    return Oracle.from_pretrained(path, anyway)


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
