"""The parts of a training loop that is stopped and gone on with: optimiser and its moments, batches, one step, the held-out loss."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer

from weight_oracle.oracle.data import Collator, QuestionData
from weight_oracle.oracle.model import WeightOracle

CLIP = 1.0  # largest norm of the gradients
_STATE = ("exp_avg", "exp_avg_sq", "step")  # of AdamW, for each parameter


def new_optimizer(model: WeightOracle, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW as `oracle.train` has it from the Trainer: no decay of biases and norms."""
    decayed = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    parts = [[p for name, p in model.named_parameters() if (name in decayed) == decay] for decay in (True, False)]
    groups = [{"params": part, "weight_decay": decay} for part, decay in zip(parts, (weight_decay, 0.0), strict=True)]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-8, fused=True)


def moments_of(model: WeightOracle, optimizer: Any) -> dict[str, Tensor]:
    """What AdamW remembers of every parameter, by the parameter's name; `optimizer` may be wrapped by accelerate."""
    state = getattr(optimizer, "optimizer", optimizer).state
    return {f"{kind}.{name}": state[p][kind] for name, p in model.named_parameters() if p in state for kind in _STATE}


def load_moments(model: WeightOracle, optimizer: torch.optim.AdamW, moments: dict[str, Tensor]) -> None:
    """The inverse of `moments_of`."""
    names = {id(p): name for name, p in model.named_parameters()}
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    state = {i: {kind: moments[f"{kind}.{name}"] for kind in _STATE} for i, name in enumerate(order) if f"step.{name}" in moments}
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def backward(accelerator: Accelerator, model: torch.nn.Module, batch: dict[str, Any]) -> Tensor:
    """Gradients of one batch; returns its loss, which a GPU may not have worked out yet."""
    model.train()
    loss = model(**batch).loss
    accelerator.backward(loss)
    return loss.detach()


def update(accelerator: Accelerator, model: torch.nn.Module, optimizer: Any, lr: float) -> None:
    """Clip the gradients, and move the weights."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    accelerator.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad()


def derived_seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def batches(data: QuestionData, collate: Collator, first: int, end: int, batch: int, workers: int) -> Iterator[dict[str, Any]]:
    """Batches `first` to `end` - 1 of the data: `workers` processes draw the questions, and this one takes the weights."""
    wanted: Sequence[int] = range(first * batch, end * batch)
    pinned = workers > 0 and collate.population.device.type == "cuda"  # so that copying them waits for nothing
    drawn: Any = DataLoader(data, batch, sampler=wanted, collate_fn=collate.ask, num_workers=workers, pin_memory=pinned)  # type: ignore[arg-type]
    return (collate.read(asked) for asked in drawn)


@torch.no_grad()
def mean_loss(model: torch.nn.Module, data: QuestionData, collate: Collator, device: torch.device) -> float:
    """Nats per answer token, syntax included, as the Trainer's `eval_loss`; leaves the model in evaluation mode."""
    model.eval()
    total, tokens = 0.0, 0
    for start in range(0, len(data), 64):
        batch = collate([data[i] for i in range(start, min(start + 64, len(data)))])
        count = int((batch["labels"] != -100).sum())
        total += float(model(**send_to_device(batch, device)).loss) * count
        tokens += count
    return total / tokens


@contextmanager
def whole_step() -> Iterator[None]:
    """Ctrl-C waits for the end of what is inside: half an optimiser step is no state to go on from."""
    if threading.current_thread() is not threading.main_thread():  # where Python has no say over signals
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(1))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
