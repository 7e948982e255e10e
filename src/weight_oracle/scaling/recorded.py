"""Steps of the oracle's training that a GPU records once and replays: thousands of small kernels take longer to launch than to run."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from weight_oracle.scaling.loop import CLIP

MULTIPLE = 32  # of which the lengths of packed questions are one: each length would be recorded apart
MOST = 64  # recordings; batches of further shapes are not recorded


class Recorder:
    """Optimiser steps, as `loop.backward` and `loop.update` take them; for a shape of batches that was met before, a CUDA graph.

    A parameter that gets no gradient from batches of one shape (the second readers of gated neurons, say) is left alone by their steps, as
    it is without recording. `optimizer` is an AdamW of parameters on a GPU; it is told the learning rate by a tensor from now on.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.AdamW, most: int = MOST):
        self.model, self.optimizer, self.most = model, optimizer, most
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.rate = torch.zeros((), device=self.parameters[0].device)
        for group in optimizer.param_groups:
            group.update(lr=self.rate, capturable=True)
        self.gradients = [torch.zeros_like(p) for p in self.parameters]
        self.memory = torch.cuda.graph_pool_handle()  # shared: graphs are replayed one after another
        self.used: dict[Any, list[bool]] = {}  # shape of a batch -> which parameters it gives gradients
        self.graphs: dict[Any, tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}

    def step(self, batch: dict[str, Any], rate: float) -> Tensor:
        """Move the weights; returns the loss before, which the GPU may not have worked out yet."""
        self.model.train()
        self.rate.fill_(rate)
        tensors, form = tree_flatten(batch)
        kind = tuple((x.shape, x.dtype) for x in tensors), str(form)
        if kind not in self.used or (kind not in self.graphs and len(self.graphs) == self.most):
            return self._plain(batch, kind)
        if kind not in self.graphs:
            self.graphs[kind] = self._recorded(tensors, form, self.used[kind])
        graph, given, loss = self.graphs[kind]
        for mine, new in zip(given, tensors, strict=True):
            mine.copy_(new)
        graph.replay()
        return loss.clone()

    def _plain(self, batch: dict[str, Any], kind: Any) -> Tensor:
        """Without a recording, on a stream of its own, as PyTorch asks for before one is made."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for p in self.parameters:
                p.grad = None
            loss = self.model(**batch).loss
            loss.backward()
            self.used[kind] = [p.grad is not None for p in self.parameters]
            torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
            self.optimizer.step()
        torch.cuda.current_stream().wait_stream(stream)
        return loss.detach()

    def _recorded(self, tensors: list[Tensor], form: Any, used: list[bool]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        given = [x.clone() for x in tensors]
        for p, gradient, mine in zip(self.parameters, self.gradients, used, strict=True):
            p.grad = gradient if mine else None
        some = [gradient for gradient, mine in zip(self.gradients, used, strict=True) if mine]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.memory, capture_error_mode="thread_local"):  # another thread pins questions meanwhile
            torch._foreach_zero_(some)
            loss = self.model(**tree_unflatten(given, form)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for p, mine in zip(self.parameters, used, strict=True) if mine], CLIP)
            self.optimizer.step()
        return graph, given, loss.detach()
