"""What each command of the command line does: its dataclass in, the JSON object and the text for people out."""

from weight_oracle.commands.networks import ask, budget, demo, questions, read, scramble, verify
from weight_oracle.commands.output import Output
from weight_oracle.commands.zoos import compare, evaluate, scale, train, train_reranker, zoo_build, zoo_export, zoo_show

__all__ = [
    "Output", "ask", "budget", "compare", "demo", "evaluate", "questions", "read", "scale", "scramble", "train",
    "train_reranker", "verify", "zoo_build", "zoo_export", "zoo_show",
]  # fmt: skip
