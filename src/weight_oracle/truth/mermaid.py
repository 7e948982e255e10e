"""Draw a flow chart."""

from weight_oracle.truth.domain import DEFAULT_NAMES, Names
from weight_oracle.truth.flowchart import FlowChart, Say, test_text, to_text


def mermaid(chart: FlowChart, names: Names = DEFAULT_NAMES) -> str:
    """The chart as a Mermaid flow chart: a diamond for every test, a rounded box for every answer."""
    lines = ["flowchart TD"]
    n_nodes = 0

    def draw(node: FlowChart) -> str:
        nonlocal n_nodes
        name = f"n{n_nodes}"
        n_nodes += 1
        if isinstance(node, Say):
            lines.append(f'    {name}(["{_escape(to_text(node, names).removeprefix("say "))}"])')
            return name
        lines.append(f'    {name}{{"{_escape(test_text(node.test, names))}?"}}')
        for label, branch in (("yes", node.then), ("no", node.other)):
            at = len(lines)
            child = draw(branch)
            lines.insert(at, f"    {name} -- {label} --> {child}")
        return name

    draw(chart)
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    """Mermaid reads HTML entities inside quotes; names are the user's, so everything but plain words is written as one."""
    return "".join(c if c.isalnum() or c in " _-." else f"#{ord(c)};" for c in text)
