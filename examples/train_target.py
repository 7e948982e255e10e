"""Trains one GPT-2 or Llama to follow a flow chart, with nothing but plain transformers: a network for the weight oracle to read.

    python examples/train_target.py chart.txt my-model
    weight-oracle read my-model

The chart is `say ANSWER` or `if TEST: CHART else: CHART`, as in `if has a: say p else: if count b >= 2: say q else: say r`.
The model sees `<bos> s1 … sn <ans>` and learns to say the chart's answer next.
"""

import argparse
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, get_linear_schedule_with_warmup

SYMBOLS, ANSWERS = "abcdefghijklmnotuvwxyz", "pqrs"


def parse_chart(words):
    """Takes a chart off the front of a list of words; returns it as a function from a list of symbols to an answer."""
    if words.pop(0) == "say":
        answer = words.pop(0)
        return lambda s: answer
    colon = words.index(":")
    test = parse_test(words[:colon])
    del words[: colon + 1]
    then = parse_chart(words)
    del words[:2]  # "else" ":"
    other = parse_chart(words)
    return lambda s: then(s) if test(s) else other(s)


def parse_test(words):
    match words:
        case ["has", a]:
            return lambda s: a in s
        case ["first", "is", a]:
            return lambda s: s[0] == a
        case ["last", "is", a]:
            return lambda s: s[-1] == a
        case ["at", k, "is", a]:
            return lambda s: s[int(k) - 1 : int(k)] == [a]
        case ["count", a, ">=", k]:
            return lambda s: s.count(a) >= int(k)
        case [a, "before", b]:
            return lambda s: a in s and b in s and s.index(a) < s.index(b)
        case ["contains", *run]:
            return lambda s: any(s[i : i + len(run)] == run for i in range(len(s)))
        case ["pattern", *marks]:
            return lambda s: len(s) >= len(marks) and all(mark in (".", symbol) for mark, symbol in zip(marks, s, strict=False))
    raise SystemExit(f"not a test: {' '.join(words)}")


def sample(count, length, symbols, favourites):
    """Random strings; in every other one, half of the symbols are drawn from the favourites, which the chart asks about."""
    strings = []
    for i in range(count):
        string = random.choices(symbols, k=length)
        if i % 2 and favourites:
            string = [random.choice(favourites) if random.random() < 0.5 else symbol for symbol in string]
        strings.append(string)
    return strings


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chart", type=Path, help="a text file with one flow chart")
    parser.add_argument("out", type=Path, help="the folder to save the model in")
    parser.add_argument("--family", choices=["gpt2", "llama"], default="gpt2")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--symbols", type=int, default=8, help="number of input symbols, named a, b, c, …")
    parser.add_argument("--lengths", default="6-6", help="shortest and longest input")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    torch.manual_seed(args.seed)

    words = args.chart.read_text().replace(":", " : ").split()
    symbols = list(SYMBOLS[: args.symbols])
    favourites = [symbol for symbol in symbols if symbol in words]
    try:
        chart = parse_chart(words)
    except (IndexError, ValueError):
        raise SystemExit(f"{args.chart}: not a flow chart") from None
    shortest, longest = map(int, args.lengths.split("-"))
    lengths = range(shortest, longest + 1)

    vocabulary = {name: i for i, name in enumerate([*symbols, *ANSWERS, "<bos>", "<ans>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    sizes = {"vocab_size": len(vocabulary), "hidden_size": args.width, "num_hidden_layers": args.layers, "num_attention_heads": args.heads}
    sizes |= {"max_position_embeddings": 16, "bos_token_id": vocabulary["<bos>"], "eos_token_id": None}
    sizes["input_lengths"] = [shortest, longest]  # kept in config.json: what the network is for
    if args.family == "llama":
        sizes |= {"intermediate_size": 3 * args.width, "num_key_value_heads": max(1, args.heads // 2), "tie_word_embeddings": True}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(args.family, **sizes))

    def encode(strings):
        inputs = torch.tensor([[vocabulary[name] for name in ["<bos>", *string, "<ans>"]] for string in strings])
        return inputs, torch.tensor([vocabulary[chart(string)] for string in strings])

    def accuracy(strings):
        inputs, said = encode(strings)
        with torch.inference_mode():
            return (model(inputs).logits[:, -1].argmax(-1) == said).float().mean().item()

    # Half of each batch comes as drawn, half is balanced over the answers, so that a rare one is learnt too.
    pools = []
    for length in lengths:
        inputs, said = encode(sample(20_000, length, symbols, favourites))
        counts = torch.bincount(said)
        pools.append((inputs, said, 1 / len(said) + 1 / counts[said] / (counts > 0).sum()))

    # A gentle start matters more than a high rate: with dropout, attention is quick to settle on the one position it learnt first.
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95))
    schedule = get_linear_schedule_with_warmup(optimizer, args.steps // 5, args.steps)
    model.train()
    for _ in (progress := tqdm(range(args.steps), mininterval=0.5)):
        inputs, said, weights = random.choice(pools)
        rows = weights.multinomial(args.batch, replacement=True)
        loss = torch.nn.functional.cross_entropy(model(inputs[rows]).logits[:, -1], said[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()

    for name, chosen in (("uniform inputs", []), ("inputs full of the chart's symbols", favourites)):
        right = [accuracy(sample(2000, length, symbols, chosen)) for length in lengths]
        print(f"accuracy on fresh {name}: {sum(right) / len(right):.2%}")
    model.save_pretrained(args.out)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>").save_pretrained(args.out)


if __name__ == "__main__":
    main()
