"""What trainings have in common: their arguments, a log of their losses, and the last checkpoint that is whole."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint


def arguments_of(config: Any, **more: Any) -> TrainingArguments:
    """Those that all trainings share: AdamW, a warm-up and a cosine, and data that are functions of the seed, in their order. `config` has
    `out`, `steps`, `lr`, `warmup`, `weight_decay`, `save_every` and `seed`."""
    return TrainingArguments(
        output_dir=str(Path(config.out) / "run"),
        max_steps=config.steps,
        learning_rate=config.lr,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        save_steps=config.save_every,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=config.save_every,
        prediction_loss_only=True,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=config.seed,
        data_seed=config.seed,
        train_sampling_strategy="sequential",
        dataloader_num_workers=0,
        **more,
    )


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
