"""Random models of the families that are streamed, written down in other ways without changing what they compute."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SIZES = {"vocab_size": 30, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 16}
GPT2 = {"vocab_size": 30, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_inner": 20, "n_positions": 16}
CASES = {
    "llama": {"model_type": "llama"} | SIZES | HEADS,
    "llama with biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True} | SIZES | HEADS,
    "llama tied": {"model_type": "llama", "tie_word_embeddings": True} | SIZES | HEADS,
    "qwen2": {"model_type": "qwen2"} | SIZES | HEADS,
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": True} | SIZES | HEADS,
    "qwen3 with any gains": {"model_type": "qwen3"} | SIZES | HEADS,
    "gpt2": {"model_type": "gpt2"} | GPT2,
    "gpt2 untied relu": {"model_type": "gpt2", "activation_function": "relu", "tie_word_embeddings": False} | GPT2,
}


@dataclass(frozen=True)
class Memory:
    """A checkpoint that is held in memory."""

    config: dict
    tensors: dict[str, Tensor]

    @property
    def shapes(self):
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def dtypes(self):
        return {name: tensor.dtype for name, tensor in self.tensors.items()}

    def tensor(self, name):
        return self.tensors[name]


def model_of(checkpoint):
    """The Hugging Face model, in float64."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**checkpoint.config)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    missing, surplus = model.load_state_dict(checkpoint.tensors, strict=False)
    assert not surplus and all(name == "lm_head.weight" for name in missing)
    return model


@torch.inference_mode()
def log_probabilities(checkpoint):
    tokens = torch.randint(0, 30, (4, 9), generator=torch.Generator().manual_seed(0))
    return model_of(checkpoint)(tokens).logits.log_softmax(-1)


def random_checkpoint(case, seed=0, **changes):
    """Every gain and bias matters; the gains of QK-norm are equal within a plane, but for the case that says otherwise."""
    config = CASES[case] | changes
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in _shapes(config).items():
        scale = shape[-1] ** -0.5 if len(shape) == 2 and "embed" not in name and "wte" not in name and "wpe" not in name else 0.4
        gain = float(len(shape) == 1 and name.endswith("weight"))
        tensors[name] = gain + scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        if name.endswith(("q_norm.weight", "k_norm.weight")) and case != "qwen3 with any gains":
            tensors[name] = tensors[name][: len(tensors[name]) // 2].repeat(2)
    return Memory(config, tensors)


def _shapes(config):
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def gaussian(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def haar(generator, size):
    return torch.linalg.qr(gaussian(generator, size, size)).Q


def invertible(generator, size):
    return haar(generator, size) @ torch.diag(0.4 + 2 * torch.rand(size, generator=generator, dtype=torch.float64)) @ haar(generator, size)


def isometry(generator, wide, width, keep_ones):
    """[wide, width] with orthonormal columns; the all-ones vector goes to the all-ones vector's direction if `keep_ones`."""
    if not keep_ones:
        return haar(generator, wide)[:, :width]
    ends = []
    for size in (wide, width):
        start = torch.cat([torch.ones(size, 1, dtype=torch.float64), gaussian(generator, size, size - 1)], 1)
        basis = torch.linalg.qr(start).Q
        ends.append(basis * basis[:, :1].sum().sign())
    return ends[0][:, :width] @ ends[1].T


LLAMA = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj"}
LLAMA |= {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}


def rewritten(checkpoint, seed, wide=None, only=None):
    """The same function in other weights: all symmetries, or those named in `only`, after the norms are folded; and at the width `wide`."""
    config, old = dict(checkpoint.config), checkpoint.tensors
    kind = config["model_type"]
    conv = kind == "gpt2"
    g = torch.Generator().manual_seed(seed)
    do = lambda name: only is None or name in only  # noqa: E731
    embed_name, norm_name = ("transformer.wte.weight", "transformer.ln_f") if conv else ("model.embed_tokens.weight", "model.norm")
    d = old[embed_name].shape[1]
    new_d = wide or d
    heads = config["n_head"] if conv else config["num_attention_heads"]
    groups = heads if conv else config["num_key_value_heads"]
    dh = d // heads if conv else config["head_dim"]
    turn = isometry(g, new_d, d, conv) if do("rotation") or wide else torch.eye(d, dtype=torch.float64)
    unit = torch.full((new_d,), (d / new_d) ** 0.5, dtype=torch.float64)
    new = {embed_name: old[embed_name] @ turn.T}
    if conv:
        new["transformer.wpe.weight"] = old["transformer.wpe.weight"] @ turn.T
    head = old.get("lm_head.weight", old[embed_name])
    gain = old[f"{norm_name}.weight"]
    new["lm_head.weight"] = (head * gain) @ turn.T
    new[f"{norm_name}.weight"] = unit
    if conv:
        new[f"{norm_name}.bias"] = (old[f"{norm_name}.bias"] / gain) @ turn.T
    if do("unembedding"):
        new["lm_head.weight"] = new["lm_head.weight"] + gaussian(g, new_d) * 0.5
    for layer in range(config["n_layer"] if conv else config["num_hidden_layers"]):
        at = f"transformer.h.{layer}." if conv else f"model.layers.{layer}."
        norms = ("ln_1", "ln_2") if conv else ("input_layernorm", "post_attention_layernorm")
        names = {"o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"} if conv else LLAMA
        w = {part: old[f"{at}{name}.weight"].T if conv else old[f"{at}{name}.weight"] for part, name in names.items()}
        b = {part: old[f"{at}{name}.bias"] for part, name in names.items() if f"{at}{name}.bias" in old}
        if conv:
            w |= dict(zip("qkv", old[f"{at}attn.c_attn.weight"].T.chunk(3), strict=True))
            b |= dict(zip("qkv", old[f"{at}attn.c_attn.bias"].chunk(3), strict=True))
        for part in w.keys() & {"q", "k", "v", "gate", "up"}:
            norm = norms[part in ("gate", "up")]
            if conv:
                b[part] = b[part] + w[part] @ old[f"{at}{norm}.bias"]
            w[part] = (w[part] * old[f"{at}{norm}.weight"]) @ turn.T
        for part in ("o", "down"):
            w[part] = turn @ w[part]
            if part in b:
                b[part] = turn @ b[part]
        for norm in norms:
            new[f"{at}{norm}.weight"] = unit
            if conv:
                new[f"{at}{norm}.bias"] = torch.zeros(new_d, dtype=torch.float64)
        gains = {n: old[f"{at}self_attn.{n}_norm.weight"].clone() for n in "qk"} if kind == "qwen3" else {}
        _attention(w, b, gains, heads, groups, dh, conv, do, g)
        _mlp(w, b, config, do, g)
        if wide and conv:  # GPT-2's heads grow with its width
            _pad_heads(w, b, heads, dh, new_d // heads)
        for n, gain in gains.items():
            new[f"{at}self_attn.{n}_norm.weight"] = gain
        if conv:
            for p in ("q", "k", "v", "up") if do("readers") else ():
                w[p] = w[p] + gaussian(g, len(w[p]), 1) * w[p].std()
            for p in ("o", "down") if do("writers") else ():
                w[p] = w[p] + gaussian(g, w[p].shape[1]) * w[p].std()
                b[p] = b[p] + gaussian(g, 1)
            new[f"{at}attn.c_attn.weight"] = torch.cat([w.pop(p) for p in "qkv"]).T
            new[f"{at}attn.c_attn.bias"] = torch.cat([b.pop(p) for p in "qkv"])
        new |= {f"{at}{names[part]}.weight": (x.T if conv else x).contiguous() for part, x in w.items()}
        new |= {f"{at}{names[part]}.bias": x for part, x in b.items()}
    for name in (embed_name, "transformer.wpe.weight") if conv and do("writers") else ():
        new[name] = new[name] + gaussian(g, len(new[name]), 1) * new[name].std()
    if conv and do("positions"):  # every token has a position, so what all positions share may be the tokens' as well
        moved = gaussian(g, new_d) * 0.5
        new |= {embed_name: new[embed_name] + moved, "transformer.wpe.weight": new["transformer.wpe.weight"] - moved}
    config["tie_word_embeddings"] = False
    if wide:
        config["n_embd" if conv else "hidden_size"] = wide
        eps = "layer_norm_epsilon" if conv else "rms_norm_eps"
        config[eps] = config.get(eps, 1e-5 if conv else 1e-6) * d / wide
    return Memory(config, {name: tensor.contiguous() for name, tensor in new.items()})


def _attention(w, b, gains, heads, groups, dh, conv, do, g):
    """All of a head's inner changes of basis, and the order of heads and groups, in place."""
    share = heads // groups
    q, k, v = (torch.cat([w[p], b[p][:, None] if p in b else 0 * w[p][:, :1]], 1).unflatten(0, (-1, dh)) for p in "qkv")
    o = w["o"].unflatten(1, (heads, dh)).transpose(0, 1).clone()  # [heads, d, dh]
    q, k, v = q.clone(), k.clone(), v.clone()
    for group in range(groups):
        mine = range(group * share, (group + 1) * share)
        if do("ov"):
            change = invertible(g, dh)
            v[group] = change @ v[group]
            for h in mine:
                o[h] = o[h] @ torch.linalg.inv(change)
        if do("qk") and conv:
            change = invertible(g, dh)
            k[group], q[group] = torch.linalg.inv(change).T @ k[group], change @ q[group]
        elif do("qk"):
            size = torch.ones(dh // 2, dtype=torch.float64) if gains else 0.5 + torch.rand(dh // 2, generator=g, dtype=torch.float64)
            angle = gaussian(g, dh // 2) * 3
            if any(not torch.equal(*gain.chunk(2)) for gain in gains.values()):
                angle = math.pi * (angle > 0).double()  # only half a turn commutes with gains that differ within a plane
            factor = torch.polar(size, angle)[:, None]
            for h in mine:
                q[h] = _planes(q[h], factor)
            k[group] = _planes(k[group], 1 / factor.conj())
    if conv and do("qk"):
        k[..., -1] += gaussian(g, groups, dh)
    if "v" in b and do("value_bias") and "o" in b:
        moved = gaussian(g, groups, dh)
        v[..., -1] += moved
        b["o"] = b["o"] - torch.einsum("hdi,hi->d", o, moved.repeat_interleave(share, 0))
    if gains and do("qk"):
        q, k = (x * (0.5 + torch.rand(len(x), 1, 1, generator=g, dtype=torch.float64)) for x in (q, k))
        moved = (0.5 + torch.rand(dh // 2, generator=g, dtype=torch.float64)).repeat(2)
        gains["q"], gains["k"] = gains["q"] * moved, gains["k"] / moved
    if do("heads"):
        order = torch.randperm(groups, generator=g)
        inner = torch.stack([group * share + torch.randperm(share, generator=g) for group in order]).flatten()
        q, o, k, v = q[inner], o[inner], k[order], v[order]
    for p, x in zip("qkv", (q, k, v), strict=True):
        x = x.flatten(0, 1)
        w[p] = x[:, :-1]
        if p in b:
            b[p] = x[:, -1]
    w["o"] = o.transpose(0, 1).flatten(1)


def _planes(rows, factor):
    turned = torch.complex(*rows.chunk(2)) * factor
    return torch.cat([turned.real, turned.imag])


def _mlp(w, b, config, do, g):
    if not do("neurons"):
        return
    count = len(w["up"])
    order = torch.randperm(count, generator=g)
    scale = torch.ones(count, dtype=torch.float64)
    if "gate" in w or config.get("activation_function") == "relu":
        scale = 0.4 + 2 * torch.rand(count, generator=g, dtype=torch.float64)
    if "gate" in w:
        scale = scale * (2 * torch.randint(2, (count,), generator=g) - 1)
    w["up"], w["down"] = (w["up"] * scale[:, None])[order], (w["down"] / scale)[:, order]
    b |= {"up": (b["up"] * scale)[order]} if "up" in b else {}
    if "gate" in w:
        w["gate"] = w["gate"][order]
        b |= {"gate": b["gate"][order]} if "gate" in b else {}


def _pad_heads(w, b, heads, dh, wide):
    more = (0, 0, 0, wide - dh)
    scale = {"q": math.sqrt(wide / dh), "k": 1.0, "v": 1.0}
    for p, factor in scale.items():
        w[p] = factor * torch.nn.functional.pad(w[p].unflatten(0, (heads, dh)), more).flatten(0, 1)
        b[p] = factor * torch.nn.functional.pad(b[p].unflatten(0, (heads, dh)), (0, wide - dh)).flatten()
    w["o"] = torch.nn.functional.pad(w["o"].unflatten(1, (heads, dh)), (0, wide - dh)).flatten(1)
