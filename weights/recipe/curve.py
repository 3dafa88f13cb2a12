"""Validation Dice against steps, from the metrics of one or several runs: one markdown table.

    python weights/recipe/curve.py NAME=RUN/metrics.tsv ...

Dice is that of the network alone, on its working grid, with the brain's box from the reference.
"""

import sys
from pathlib import Path

Scores = dict[str, float]
"""Data set and kind of image -> mean Dice."""


def read_scores(path: Path) -> dict[int, Scores]:
    """The scores of a run by step."""
    steps: dict[int, Scores] = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        step, name, value = line.split("\t")
        if name != "loss":
            steps.setdefault(int(step), {})[name] = float(value)
    return steps


def table(runs: dict[str, dict[int, Scores]]) -> str:
    """A row per run and step, a column per kind of score."""
    columns = sorted({name for steps in runs.values() for one in steps.values() for name in one})
    lines = [f"| run | step | {' | '.join(columns)} |", f"|---|--:|{'--:|' * len(columns)}"]
    for run, steps in runs.items():
        for step, scores in sorted(steps.items()):
            cells = (f"{scores[name]:.3f}" if name in scores else "" for name in columns)
            lines.append(f"| {run} | {step} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    named = (argument.partition("=") for argument in sys.argv[1:])
    print(table({name: read_scores(Path(path)) for name, _, path in named}))
