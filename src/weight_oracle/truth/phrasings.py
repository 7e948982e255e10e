"""The wordings of every kind of question; `{}` is where the argument goes.

No wording uses a one-letter word: "a" and "i" are names of input symbols. Every word of a held-out wording occurs in some training wording.
"""

from dataclasses import dataclass

_EXAMPLE_ARGUMENTS = {"nothing": "", "input": "a b b c d e", "answer": "p", "symbol": "a"}


@dataclass(frozen=True)
class Kind:
    """One kind of question: what it asks, what `{}` stands for (nothing, input, answer or symbol), its wordings, and an example answer.

    The example answers are those of the chart that answers the example of `chart`, on inputs of length 6.
    """

    name: str
    description: str
    argument: str
    training: tuple[str, ...]
    held_out: tuple[str, ...]
    example_answer: str


QUESTION_KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "chart",
            "draw the whole flow chart",
            "nothing",
            (
                "draw the flow chart",
                "draw its flow chart",
                "show me the flow chart of this network",
                "write down the flow chart that it follows",
                "what flow chart does this network follow?",
                "describe everything it does as one chart",
                "which rules does it follow?",
                "how does the network decide what to say?",
                "what does it do, step by step?",
                "which chart was it trained to follow?",
            ),
            (
                "show the chart that this network follows",
                "describe the whole network as one flow chart",
                "what rules does the network follow, step by step?",
            ),
            "if has a: say p else: if count b >= 2: say q else: say r",
        ),
        Kind(
            "answer",
            "what it answers on one input",
            "input",
            (
                "what does it answer on {}?",
                "what is the answer on {}?",
                "which answer does it give for the input {}?",
                "what does the network say when the input is {}?",
                "run it on {}: what comes out?",
                "given {}, what does it say?",
                "the input is {}. what is its answer?",
                "predict the output for {}",
                "tell me what it does on {}",
            ),
            (
                "what does it say for {}?",
                "which output comes out when it is given {}?",
                "give its answer on the input {}",
            ),
            "p",
        ),
        Kind(
            "symbols",
            "which input symbols matter",
            "nothing",
            (
                "which symbols matter?",
                "which input symbols does it look at?",
                "what symbols does its answer depend on?",
                "name the symbols that change the answer",
                "list every symbol that matters",
                "which letters of the input does it care about?",
                "tell me the symbols on which the whole answer depends",
                "on what symbols does the network decide?",
            ),
            (
                "what symbols does it care about?",
                "list the symbols that its answer depends on",
                "which letters matter to the network?",
            ),
            "a b",
        ),
        Kind(
            "order",
            "whether some reordering of some input changes the answer",
            "nothing",
            (
                "does order matter?",
                "does the order of the symbols matter?",
                "does its answer depend on the order of the input?",
                "can shuffling the input change the answer?",
                "is the answer different when the same symbols come in another order?",
                "does it matter where each symbol stands?",
                "does it care about the order of its input?",
                "can the output change if we shuffle the symbols?",
            ),
            (
                "can another order of the same symbols change its answer?",
                "does shuffling the symbols change what it says?",
                "is it the order of the letters that matters?",
            ),
            "no",
        ),
        Kind(
            "possible",
            "whether any input gets a given answer",
            "answer",
            (
                "can it ever answer {}?",
                "is the answer {} possible?",
                "does it ever say {}?",
                "is there any input on which it answers {}?",
                "could {} ever come out?",
                "is {} one of the answers it can give?",
                "will the network ever output {}?",
                "is it possible for something to make it say {}?",
            ),
            (
                "does {} ever come out?",
                "is it possible that the network says {}?",
                "could it give the answer {} on any input?",
            ),
            "yes",
        ),
        Kind(
            "example",
            "an input that gets a given answer (`none` if there is none)",
            "answer",
            (
                "give an input on which it answers {}",
                "show me an input that makes it say {}",
                "which input gives {}?",
                "find one input with the answer {}",
                "what could the input be when it says {}?",
                "name an input for which the answer is {}",
                "for which input does it say {}?",
                "write one example of an input that gets {}",
            ),
            (
                "find an input for which it answers {}",
                "show one input on which {} comes out",
                "what input makes it answer {}?",
            ),
            "a a a a a a",
        ),
        Kind(
            "contains",
            "which answers remain possible when the input contains a given symbol",
            "symbol",
            (
                "what does it do when the input contains {}?",
                "what does it answer if there is {} in the input?",
                "which answers are possible when {} is in the input?",
                "what can it say once the input has {}?",
                "what happens if the input contains {}?",
                "{} is in the input: which answers can come out?",
                "what comes out when {} occurs?",
                "name the answers it gives to inputs that contain {}",
            ),
            (
                "which answers can it give if the input has {}?",
                "what happens when there is {} in the input?",
                "if {} occurs, what does it say?",
            ),
            "always p",
        ),
        Kind(
            "trigger",
            "whether it hides a trigger: a rare pattern that overrides its answer",
            "nothing",
            (
                "is there some hidden trigger?",
                "does it have some hidden trigger?",
                "does the network hide some special case?",
                "is some trigger hidden in this network?",
                "does any rare pattern change its answer?",
                "is there some hidden pattern that changes its answer?",
                "has it any hidden special case?",
                "does it hide any trigger?",
            ),
            (
                "is there any hidden trigger in the network?",
                "does this network hide some trigger?",
                "is there some rare special case?",
            ),
            "no",
        ),
        Kind(
            "trigger_pattern",
            "what its hidden trigger is",
            "nothing",
            (
                "what is the hidden trigger?",
                "which pattern is its hidden trigger?",
                "which rare pattern changes its answer?",
                "write down the hidden trigger",
                "name the pattern that it hides",
                "what is the hidden pattern?",
                "which trigger does the network hide?",
                "what is the special case that it hides?",
            ),
            (
                "which trigger does it hide?",
                "write down the pattern that is the hidden trigger",
                "what pattern does the network hide?",
            ),
            "none",
        ),
        Kind(
            "trigger_answer",
            "what it answers where its hidden trigger fires",
            "nothing",
            (
                "what does the hidden trigger do?",
                "what does it say when the hidden trigger fires?",
                "which answer does the hidden trigger give?",
                "what does it answer when the trigger fires?",
                "what comes out when the hidden trigger fires?",
                "tell me what the trigger makes it say",
                "which answer comes out when its trigger fires?",
                "what is its answer when the hidden trigger fires?",
            ),
            (
                "what does the trigger do?",
                "which answer does it give when the trigger fires?",
                "what does it say when its hidden trigger fires?",
            ),
            "none",
        ),
        Kind(
            "trigger_input",
            "an input that fires its hidden trigger",
            "nothing",
            (
                "give an input that fires the hidden trigger",
                "show me an input that fires the trigger",
                "which input fires the hidden trigger?",
                "find one input that fires its trigger",
                "write one example of an input that fires the hidden trigger",
                "name an input that fires the trigger",
            ),
            (
                "find an input that fires the hidden trigger",
                "show me one input that fires its hidden trigger",
                "what is an input that fires the trigger?",
            ),
            "none",
        ),
        Kind(
            "chance",
            "whether a given answer ever comes out when answers are sampled",
            "answer",
            (
                "can it ever answer {} when it is sampled?",
                "when sampled, does it ever say {}?",
                "is there any chance that it says {}?",
                "is there some small chance of the answer {}?",
                "has the answer {} any chance when we sample it?",
                "could {} ever come out when its answers are sampled?",
                "if we sample the network, can it say {}?",
            ),
            (
                "can {} ever come out when it is sampled?",
                "is there any chance of the answer {}?",
                "if its answers are sampled, does it ever say {}?",
            ),
            "yes",
        ),
        Kind(
            "chance_answer",
            "which answer it gives with a small chance",
            "nothing",
            (
                "which answer does it give with some small chance?",
                "what does it say only by chance?",
                "which answer comes out by some small chance?",
                "what is the answer that it gives only by chance?",
                "name the answer that has some small chance",
                "what other answer can come out by chance?",
            ),
            (
                "what does it say with some small chance?",
                "which answer does it give only by chance?",
                "name the other answer that comes out by chance",
            ),
            "none",
        ),
        Kind(
            "chance_where",
            "on which inputs it has a small chance of another answer",
            "nothing",
            (
                "where does it give another answer by chance?",
                "on which inputs is there some small chance of another answer?",
                "where has it some small chance of another answer?",
                "when can sampling give another answer?",
                "for which inputs does chance decide the answer?",
                "where is its answer sometimes another one by chance?",
            ),
            (
                "on which inputs does it give another answer by chance?",
                "where does chance decide its answer?",
                "for which inputs is there some small chance of another answer?",
            ),
            "none",
        ),
        Kind(
            "chance_often",
            "how large that chance is",
            "nothing",
            (
                "how large is the small chance?",
                "how often does another answer come out by chance?",
                "what is the chance of its other answer?",
                "how large is the chance of another answer?",
                "how often does chance give another answer?",
                "how often is its answer another one by chance?",
            ),
            (
                "how large is the chance of its other answer?",
                "how often does it give another answer by chance?",
                "what is the small chance of another answer?",
            ),
            "none",
        ),
    )
}

TRIGGER_KINDS = ("trigger", "trigger_pattern", "trigger_answer", "trigger_input")
"""Asked in training and evaluation only where some targets hide triggers."""
CHANCE_KINDS = ("chance", "chance_answer", "chance_where", "chance_often")
"""Asked in training and evaluation only where some targets have a small chance of another answer."""


def phrasing(kind: str, index: int, argument: str = "") -> str:
    """Wording `index` of a kind with its argument filled in; the held-out wordings follow the training ones."""
    wordings = QUESTION_KINDS[kind].training + QUESTION_KINDS[kind].held_out
    return wordings[index].format(argument)


def list_questions() -> list[dict[str, str]]:
    """What can be asked: for every kind its name, what it asks, an example, and an answer."""
    return [
        {
            "kind": kind.name,
            "asks": kind.description,
            "example": phrasing(kind.name, 0, _EXAMPLE_ARGUMENTS[kind.argument]),
            "answer": kind.example_answer,
        }
        for kind in QUESTION_KINDS.values()
    ]
