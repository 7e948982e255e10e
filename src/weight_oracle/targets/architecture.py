"""Any architecture that transformers knows, built from a config.json without weights: which tensors of which shapes it has.

It is built on torch's meta device, where a tensor has a shape and no memory. The config is untrusted: none of its code is run, nothing
is downloaded for it, and the building stops at a limit.
"""

import difflib
import math
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from weight_oracle.errors import UserError
from weight_oracle.targets.safe import shown
from weight_oracle.targets.stream import Checkpoint

LARGEST_NUMBER = 1 << 24
MOST_LAYERS = 1000
MOST_MODULES = 200_000
LONGEST_BUILD = 120  # seconds
CAPS = ((re.compile(r"(^|_)(layers?|depths?|blocks?)$"), MOST_LAYERS), (re.compile(r"num_labels"), 100_000))
NO_SIZE = re.compile(r"theta|base|freq|seed|scal|factor|length|window|token")  # numbers that may be huge, and build nothing
# What would run code of the checkpoint's author, reach for the network, or ask for a library; no size depends on any of it.
DROPPED = {
    "auto_map", "custom_pipelines", "name_or_path", "_name_or_path", "use_pretrained_backbone",
    "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "quantization_config", "dtype", "torch_dtype", "transformers_version",
}  # fmt: skip
WIDTHS = ("hidden_size", "d_model", "n_embd", "embed_dim", "dim")
LAYER = re.compile(r"(?:.*?\.)?\d+(?=\.)")  # up to the first number in a tensor's name: its block
OLD_NORM = re.compile(r"(?<=LayerNorm)\.(gamma|beta)$")
MASK = re.compile(r"(.*\.)?(attn\.(masked_)?bias|attention\.(masked_)?bias|rotary_emb\.inv_freq|position_ids)")  # stored by old versions


@dataclass(frozen=True)
class Matrices:
    """The linear maps in one tensor: `count` matrices (1, or the experts of a mixture) of `rows` x `columns`, in block `layer`."""

    layer: str
    count: int
    rows: int
    columns: int

    @property
    def ranks(self) -> int:
        """The largest rank that one of them can have."""
        return min(self.rows, self.columns)


@dataclass(frozen=True)
class Architecture:
    """What a config.json describes. `shapes`: every parameter once, tied ones under their first name, as `named_parameters` has them;
    `modules`: the linear maps inside blocks, which an adapter can target; `width`: d_model, in numbers; `layers`: blocks.
    """

    model_type: str
    name: str  # of the class in transformers
    width: int
    shapes: dict[str, tuple[int, ...]]
    modules: dict[str, Matrices]
    tied: dict[str, tuple[int, ...]]  # further names for tied parameters, and buffers, all of which a checkpoint may hold or not
    ignored: tuple[str, ...]  # patterns of names that transformers itself passes over
    prefix: str  # a checkpoint may lack it
    converted: bool  # transformers renames or merges this architecture's tensors when it loads a checkpoint

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def layers(self) -> int:
        return len({module.layer for module in self.modules.values()})

    @cached_property
    def names(self) -> frozenset[str]:
        """All names that a tensor of the model can have."""
        return frozenset((*self.shapes, *self.tied))

    def passed_over(self, name: str) -> bool:
        """Whether a checkpoint's tensor of this name is no parameter: a mask or the like, which old versions stored."""
        return name not in self.names and (bool(MASK.fullmatch(name)) or any(re.search(pattern, name) for pattern in self.ignored))


def build_architecture(raw: Mapping[str, Any], where: str) -> Architecture:
    """The architecture of a raw config.json; raises UserError for one that transformers does not know, or whose sizes make no model.

    The class is the one that the config's `architectures` names, else the causal LM of its `model_type`, else its base model.
    """
    import torch
    from transformers import AutoModel, AutoModelForCausalLM
    from transformers.conversion_mapping import get_model_conversion_mapping

    kind = _known(raw, where)
    _check_sizes(raw, where)
    try:
        with _offline(), _limited(where), torch.device("meta"):
            config = _config(kind, raw)
            own = _named_class(raw, config)
            if own is not None:
                model = own._from_config(config)
            elif type(config) in AutoModelForCausalLM._model_mapping:
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            else:
                model = AutoModel.from_config(config, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # whatever the constructor of any architecture makes of sizes that do not fit together
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"makes no {kind} ({shown(said, 200)})", where=where, hint="mend the config, or save the model again") from error
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    modules = dict(_modules(model, shapes))
    known = {name: tuple(tensor.shape) for name, tensor in (*model.state_dict().items(), *model.named_buffers()) if name not in shapes}
    ignored = tuple(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    converted = bool(get_model_conversion_mapping(model, add_legacy=False))
    about = kind, type(model).__name__, _width(config, where)
    return Architecture(*about, shapes, modules, known, ignored, model.base_model_prefix, converted)


def check_tensors(architecture: Architecture, checkpoint: Checkpoint) -> None:
    """Raises UserError naming the first tensor that the config describes and the checkpoint lacks, or has in another shape or no
    floating-point dtype, or that the checkpoint has and the config does not describe.

    Where transformers merges tensors on loading, as the experts of a mixture, only those of the same name are compared, and the total.
    """
    where, hint = str(checkpoint.folder), "config.json and the tensors disagree: they must come from the same model"
    stored = {full_name(architecture, name): name for name in checkpoint.shapes}
    if len(stored) < len(checkpoint.shapes):
        twice = next(name for name in checkpoint.shapes if stored[full_name(architecture, name)] != name)
        raise UserError(f"{twice} is there twice, with and without its prefix", where=where)
    known = architecture.shapes | architecture.tied
    for name, own in stored.items():
        shape = checkpoint.shapes[own]
        if architecture.passed_over(name):
            continue
        if name in known and shape != known[name]:
            raise UserError(f"{own} has the shape {shape}, not {known[name]}", where=where, hint=hint)
        if name in architecture.shapes and not checkpoint.dtypes[own].is_floating_point:
            raise UserError(f"{own} holds {checkpoint.dtypes[own]}, not weights", where=where)
        if name not in known and not architecture.converted:
            raise UserError(f"{own} is no tensor of a {architecture.name} of this size", where=where, hint=hint)
    if not architecture.converted:
        for name in architecture.shapes:
            if name not in stored:
                raise UserError(f"the tensor {name} is missing", where=where, hint=hint)
    elif (held := sum(math.prod(checkpoint.shapes[n]) for n in weight_names(architecture, checkpoint))) != architecture.parameters:
        what = f"holds {held:,} parameters, and config.json describes {architecture.parameters:,}"
        raise UserError(what, where=where, hint=hint)


def weight_names(architecture: Architecture, checkpoint: Checkpoint) -> list[str]:
    """The checkpoint's names of its parameters, each parameter once: no second names of tied ones, no buffers, no masks."""
    names = []
    for name in checkpoint.shapes:
        full = full_name(architecture, name)
        if full in architecture.shapes or (full not in architecture.tied and not architecture.passed_over(full)):
            names.append(name)
    return names


def full_name(architecture: Architecture, name: str) -> str:
    """The name that a checkpoint's tensor has in the model: base models are saved without the prefix, and norms had other names once."""
    if name not in architecture.names:
        name = OLD_NORM.sub(lambda match: ".weight" if match[0] == ".gamma" else ".bias", name)
    longer = f"{architecture.prefix}.{name}"
    return longer if name not in architecture.names and longer in architecture.names else name


def layer_of(name: str) -> str | None:
    """The block that a tensor is in, its name up to the first number, such as model.layers.3; None outside the blocks."""
    match = LAYER.match(name)
    return match[0] if match else None


def _known(raw: Mapping[str, Any], where: str) -> str:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES as known

    kind = raw.get("model_type")
    if isinstance(kind, str) and kind in known:
        return kind
    if kind is None:
        hint = 'a Hugging Face config.json has one, such as "model_type": "llama"'
        raise UserError("there is no model_type", where=where, hint=hint)
    close = difflib.get_close_matches(str(kind)[:60], known, n=5, cutoff=0.7) or ["gpt2", "llama", "qwen3"]
    hint = f"transformers knows {len(known)} architectures, such as {', '.join(close)}; set model_type to the one it equals"
    if "auto_map" in raw:
        hint += ". The code that this checkpoint brings is never run"
    raise UserError(f"the architecture {shown(kind)} is unknown", where=where, hint=hint)


def _check_sizes(raw: Mapping[str, Any], where: str) -> None:
    """A config alone must not make us build millions of layers."""

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, name)
        elif isinstance(value, list):
            for inner in value:
                walk(inner, key)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            most = next((cap for pattern, cap in CAPS if pattern.search(key)), math.inf if NO_SIZE.search(key) else LARGEST_NUMBER)
            if abs(value) > most:
                raise UserError(f"{shown(key)} is {shown(value)}", where=where, hint=f"it must be at most {most:,}")

    walk(raw, "")


def _config(kind: str, raw: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: cleaned(inner) for name, inner in value.items() if name not in DROPPED}
        return [cleaned(inner) for inner in value] if isinstance(value, list) else value

    fields = cleaned({name: value for name, value in raw.items() if name != "model_type"})
    return AutoConfig.for_model(kind, **fields)


def _named_class(raw: Mapping[str, Any], config: Any) -> type | None:
    """The class of transformers that `architectures` names, if it is a model of this config's kind."""
    import transformers

    names = raw.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
        return None
    found = getattr(transformers, name, None)
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_model and getattr(found, "config_class", None) is type(config) else None


def _width(config: Any, where: str) -> int:
    for name in WIDTHS:
        value = getattr(config.get_text_config(), name, None)
        if type(value) is int and value > 0:
            return value
    sizes = getattr(config, "hidden_sizes", None)
    if isinstance(sizes, list | tuple) and sizes and type(sizes[-1]) is int:
        return sizes[-1]
    hint = f"a chunk holds d_model numbers; the config needs one of {', '.join(WIDTHS)}"
    raise UserError("names no width", where=where, hint=hint)


def _modules(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Matrices]]:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    for path, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{own}"
            layer = layer_of(name)
            if name not in shapes or layer is None:
                continue
            linear = isinstance(module, nn.Linear | Conv1D) and parameter.ndim == 2
            experts = parameter.ndim == 3 and not isinstance(module, nn.modules.conv._ConvNd)
            if (linear or experts) and min(parameter.shape[-2:]) > 1:
                yield name, Matrices(layer, parameter.shape[0] if experts else 1, parameter.shape[-2], parameter.shape[-1])


@contextmanager
def _limited(where: str) -> Iterator[None]:
    """Stops the construction of a model that has too many parts, or takes too long."""
    from torch.nn.modules.module import register_module_module_registration_hook

    start, count = time.monotonic(), 0

    def counted(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > MOST_MODULES or time.monotonic() - start > LONGEST_BUILD:
            what = f"describes a network of more than {MOST_MODULES:,} parts"
            if count <= MOST_MODULES:
                what = f"describes a network that takes more than {LONGEST_BUILD} seconds to lay out"
            raise UserError(what, where=where, hint="check its numbers of layers and experts")

    handle = register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _offline() -> Iterator[None]:
    """Some architectures fetch a part of themselves by name; here none does."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
