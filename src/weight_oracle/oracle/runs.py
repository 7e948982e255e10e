"""What trainings have in common: a log of their losses, and the last checkpoint that is whole."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint


@dataclass
class Report(TrainerCallback):
    """Writes each logged loss as one JSON line, and tells the caller how far it is."""

    path: Path
    progress: Callable[[int, int, dict], None] | None
    lines: list[dict[str, Any]] = field(default_factory=list)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")
        if self.progress:
            self.progress(state.global_step, state.max_steps, logs or {})


def last_checkpoint(run: Path) -> str | None:
    """The last checkpoint that is whole; what a kill left of one that was being written is deleted."""
    while run.is_dir() and (last := get_last_checkpoint(str(run))):
        if (Path(last) / "trainer_state.json").exists():  # written last
            return last
        shutil.rmtree(last)
    return None
