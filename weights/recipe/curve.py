"""Validation Dice against steps, from the metrics of one or several runs: one markdown table.

    python weights/recipe/curve.py NAME=RUN/metrics.tsv ...

Dice is that of the network alone, on its working grid, with the brain's box from the reference;
rows named `sub-GA*` are fetal averages, the others newborns (image 0 is T1w, 1 is T2w).
"""

import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean


def main(arguments: list[str]) -> None:
    """Print the table."""
    print("| run | step | newborn T1w | newborn T2w | fetal T2w |")
    print("|---|---|---|---|---|")
    for argument in arguments:
        run, _, path = argument.partition("=")
        steps: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for line in Path(path).read_text().splitlines():
            step, name, value = line.split("\t")
            if "/" in name:
                group = "fetal" if name.startswith("sub-GA") else name.split("/")[1]
                steps[int(step)][group].append(float(value))
        for step, groups in sorted(steps.items()):
            cells = (f"{mean(groups[g]):.3f}" if groups[g] else "-" for g in ("0", "1", "fetal"))
            print(f"| {run} | {step} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main(sys.argv[1:])
