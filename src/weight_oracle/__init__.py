"""Weight oracle: reads a network's weights and says, in words, what the network does."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weight_oracle.errors import UserError
    from weight_oracle.evaluation.verify import Verdict, verify
    from weight_oracle.oracle.ask import Answer, Oracle, Reading
    from weight_oracle.targets.checkpoint import load_target, save_target
    from weight_oracle.targets.target import Target
    from weight_oracle.truth.flowchart import FlowChart, to_text
    from weight_oracle.truth.mermaid import mermaid
    from weight_oracle.truth.parse import parse
    from weight_oracle.weights.symmetry.scramble import augment, scramble
    from weight_oracle.zoo.store import Zoo, open_zoo

# Imported when first used: most of these bring torch along.
_HOMES = {
    "errors": ("UserError",),
    "evaluation.verify": ("Verdict", "verify"),
    "oracle.ask": ("Answer", "Oracle", "Reading"),
    "targets.checkpoint": ("load_target", "save_target"),
    "targets.target": ("Target",),
    "truth.flowchart": ("FlowChart", "to_text"),
    "truth.mermaid": ("mermaid",),
    "truth.parse": ("parse",),
    "weights.symmetry.scramble": ("augment", "scramble"),
    "zoo.store": ("Zoo", "open_zoo"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Answer", "FlowChart", "Oracle", "Reading", "Target", "UserError", "Verdict", "Zoo",
    "augment", "load_target", "mermaid", "open_zoo", "parse", "save_target", "scramble", "to_text", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
