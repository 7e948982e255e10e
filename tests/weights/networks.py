"""One small network of each architecture with its spec: random weights in float64 whose every number matters, and its function."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from weight_oracle.weights.symmetry.axes import Spec
from weight_oracle.weights.symmetry.specs.cnn import cnn, resnet
from weight_oracle.weights.symmetry.specs.gpt2 import gpt2
from weight_oracle.weights.symmetry.specs.llama import llama
from weight_oracle.weights.symmetry.specs.lora import lora
from weight_oracle.weights.symmetry.specs.mlp import mlp

Tensors = dict[str, Tensor]
NONLINEAR = {"relu": F.relu, "leaky_relu": F.leaky_relu, "tanh": torch.tanh, "gelu": F.gelu, "silu": F.silu}
W0 = 7.3


@dataclass(frozen=True)
class Network:
    spec: Spec
    tensors: Tensors
    run: Callable[[Tensors], Tensor]


def normal(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def change(network: Network, tensors: Tensors) -> float:
    """Largest change of an output, relative to the largest output."""
    before, after = network.run(network.tensors), network.run(tensors)
    return ((after - before).abs().max() / before.abs().max()).item()


def an_mlp(activation: str = "relu", widths: tuple[int, ...] = (3, 7, 6, 4), seed: int = 0, samples: int = 50) -> Network:
    draw = normal(seed)
    tensors = {}
    for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        tensors |= {f"layers.{i}.weight": draw(b, a) * a**-0.5, f"layers.{i}.bias": draw(b) * 0.3}
    inputs = draw(samples, widths[0])

    def run(t: Tensors) -> Tensor:
        x = inputs
        for i in range(len(widths) - 1):
            x = F.linear(x, t[f"layers.{i}.weight"], t[f"layers.{i}.bias"])
            if i < len(widths) - 2:
                x = torch.sin(W0 * x) if activation == "sine" else NONLINEAR[activation](x)
        return x

    return Network(mlp(widths, activation, W0), tensors, run)


class Plain(nn.Module):
    def __init__(self, channels, classes, activation, batchnorm, places):
        super().__init__()
        pairs = zip(channels, channels[1:], strict=False)
        self.conv = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairs)
        self.bn = nn.ModuleList(nn.BatchNorm2d(b) for b in channels[1:]) if batchnorm else None
        self.fc = nn.Linear(channels[-1] * places, classes)
        self.nonlinear, self.places = NONLINEAR[activation], places

    def forward(self, x):
        for i, conv in enumerate(self.conv):
            x = conv(x)
            x = self.nonlinear(x if self.bn is None else self.bn[i](x))
        return self.fc(x.mean((2, 3)) if self.places == 1 else x.flatten(1))


class Block(nn.Module):
    """torchvision's BasicBlock."""

    def __init__(self, before, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.downsample = None
        if before != width:
            self.downsample = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class Residual(nn.Module):
    def __init__(self, widths, blocks, classes):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0])
        before = widths[0]
        for s, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            stage = []
            for b in range(count):
                stage, before = [*stage, Block(before, width, 2 if s > 0 and b == 0 else 1)], width
            setattr(self, f"layer{s + 1}", nn.Sequential(*stage))
        self.fc, self.stages = nn.Linear(before, classes), len(widths)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for s in range(self.stages):
            x = getattr(self, f"layer{s + 1}")(x)
        return self.fc(x.mean((2, 3)))


def randomised(module: nn.Module, seed: int) -> Tensors:
    """The module's state with every number random, variances positive."""
    draw = normal(seed)
    out = {}
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            out[name] = tensor
        elif name.endswith("running_var"):
            out[name] = 0.5 + draw(*tensor.shape).square()
        elif tensor.ndim == 1:
            out[name] = (float(name.endswith("weight")) + 0.4 * draw(*tensor.shape)) * draw(*tensor.shape).sign()
        else:
            out[name] = draw(*tensor.shape) * (2 / tensor[0].numel()) ** 0.5
    return out


def a_cnn(
    activation: str = "relu", batchnorm: bool = False, places: int = 1, channels=(2, 5, 4), samples: int = 12, epsilon: float = 1e-5
) -> Network:
    module, seed = with_epsilon(Plain(channels, 3, activation, batchnorm, places), epsilon), 0
    inputs = normal(seed + 1)(samples, channels[0], 4, 4)
    spec = cnn(channels, 3, 3, activation, batchnorm, places)
    return Network(spec, randomised(module, seed), lambda t: functional_call(module, t, (inputs,)))


def with_epsilon(module: nn.Module, epsilon: float) -> nn.Module:
    """In double, its BatchNorms with this epsilon."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = epsilon
    return module.double().eval()


def a_resnet(seed: int = 0, epsilon: float = 1e-5) -> Network:
    module = with_epsilon(Residual((4, 6), (2, 2), 3), epsilon)
    inputs = normal(seed + 1)(12, 3, 6, 6)
    return Network(resnet((4, 6), (2, 2), 3, stem=3), randomised(module, seed), lambda t: functional_call(module, t, (inputs,)))


def an_adapter(seed: int = 0, samples: int = 20) -> Network:
    """Two LoRA updates on two frozen matrices with a nonlinearity between."""
    draw = normal(seed)
    first, second, inputs = draw(6, 5), draw(4, 6), draw(samples, 5)
    at = "base_model.model.layers.{}.{}.lora_{}.weight"
    tensors = {at.format(0, "up", "A"): draw(2, 5), at.format(0, "up", "B"): draw(6, 2)}
    tensors |= {at.format(1, "down", "A"): draw(3, 6), at.format(1, "down", "B"): draw(4, 3)}

    def run(t: Tensors) -> Tensor:
        a, b, c, d = t.values()
        return F.gelu(inputs @ (first + 0.7 * b @ a).T) @ (second + 0.7 * d @ c).T

    return Network(lora(tensors), tensors, run)


def in_double(model: nn.Module) -> nn.Module:
    """The model with torch's RMSNorm in the place of its own, which rounds to float32 whatever it is given."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                norm = nn.RMSNorm(len(child.weight), eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(module, name, norm)
    return model.double().eval()


def language_model(model: nn.Module, spec: Callable[..., Spec], seed: int, samples: int, **options) -> Network:
    """A Hugging Face model with random weights, and its log-softmax over the vocabulary at every position."""
    model = in_double(model)
    draw = normal(seed)
    tensors = {}
    for name, tensor in model.state_dict().items():
        gain = float(("norm" in name or ".ln_" in name) and name.endswith("weight"))
        tensors[name] = gain + draw(*tensor.shape) * (0.35 if tensor.ndim == 2 else 0.3)
    vocabulary, positions = model.config.vocab_size, min(8, model.config.max_position_embeddings)
    ids = torch.randint(vocabulary, (samples, positions), generator=torch.Generator().manual_seed(seed))
    run = lambda t: functional_call(model, t, kwargs={"input_ids": ids, "use_cache": False}, tie_weights=False).logits.log_softmax(-1)  # noqa: E731
    return Network(spec(model.config.to_dict(), **options), tensors, run)


def a_gpt2(activation: str = "gelu_new", seed: int = 0, samples: int = 16, **sizes) -> Network:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 11, "n_positions": 9, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_inner": 20} | sizes
    config = GPT2Config(**sizes, activation_function=activation, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None)
    return language_model(GPT2LMHeadModel(config), gpt2, seed, samples)


LLAMA = {
    "vocab_size": 11, "hidden_size": 12, "intermediate_size": 10, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 16, "tie_word_embeddings": False,
}  # fmt: skip


def a_llama(kind: str = "llama", equal_gains: bool = False, seed: int = 0, samples: int = 16, **sizes) -> Network:
    """`kind`: llama, llama_biases, qwen2, qwen3."""
    import transformers

    biases = {"attention_bias": True, "mlp_bias": True} if kind == "llama_biases" else {}
    name = {"llama": "Llama", "llama_biases": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind]
    config = getattr(transformers, f"{name}Config")(**LLAMA | sizes | biases)
    options = {"equal_gains": equal_gains} if kind == "qwen3" else {}
    network = language_model(getattr(transformers, f"{name}ForCausalLM")(config), llama, seed, samples, **options)
    if equal_gains:
        for name, tensor in network.tensors.items():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                tensor[len(tensor) // 2 :] = tensor[: len(tensor) // 2]
    return network
