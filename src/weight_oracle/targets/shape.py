"""The shape of a stack of targets: what must be equal within it."""

from dataclasses import dataclass

EMBEDDING = {"gpt2": "transformer.wte.weight", "llama": "model.embed_tokens.weight"}  # of each family that is trained in stacks


@dataclass(frozen=True)
class Shape:
    """Sizes of one stack's targets. Vocabulary order: symbols, answers, `<bos>`, `<ans>`."""

    width: int
    depth: int
    heads: int
    symbols: int
    answers: int
    positions: int
    inner: int = 0  # 0: the default of the family, 4 times the width for GPT-2, 8/3 times (in steps of 4) for Llama
    family: str = "gpt2"
    kv_heads: int = 0  # Llama's keys and values; 0: as many as there are heads
    theta: float = 10_000.0  # Llama's rope_theta

    @property
    def vocabulary(self) -> int:
        return self.symbols + self.answers + 2

    @property
    def neurons(self) -> int:
        if self.inner:
            return self.inner
        return 4 * self.width if self.family == "gpt2" else (8 * self.width // 3 + 3) // 4 * 4

    @property
    def groups(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads
