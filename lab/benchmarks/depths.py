"""How many keys each depth bears: one depth downsampled at a time, in the hires pass of either trained model.

    python -m lab.benchmarks.depths [--model sd15] [--size 512] [--sampler "DPM++ 2M"] [--steps 20] [--prompts 25]

Depth 1 alone and depth 2 alone are downsampled by 2 and by 3, on the paper's grid and on a moving one. The size is that
of the image that the hires pass begins from, as in the benchmark `fidelity`. A run that was stopped goes on where it
was.
"""

from __future__ import annotations

from lab.benchmarks.fidelity import (
    PROMPTS,
    Scenario,
    all_results,
    checked,
    measure,
    medians,
    parser_of,
    results_file,
    summary,
    weights,
)
from lab.benchmarks.methods import Method, todo
from lab.benchmarks.samplers import SAMPLERS, Progress
from lab.benchmarks.store import Store
from lab.model.emoji import load
from todo_lib import Settings

CASES = {  # how a row is called -> factor at depth 1, factor at depth 2
    "depth 1 alone, 2": (2, 1),
    "depth 1 alone, 3": (3, 1),
    "depth 2 alone, 2": (1, 2),
    "depth 2 alone, 3": (1, 3),
}
GRIDS = {"the paper's grid": False, "moving grid": True}  # name -> whether it moves


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--sampler", choices=SAMPLERS, default="DPM++ 2M")
    parser.add_argument("--steps", type=int, default=20, help="of the hires pass to twice the size; half are made")
    options = checked(parser, arguments)
    scenario = Scenario(2 * options.size, options.sampler, options.steps, hires=True, model=options.model)
    store = Store(results_file(options.results, "depths", options.model))
    pictures = options.results / "pictures" / f"{weights(options.model)}-depths-{scenario.name}"
    measure(load(options.model), PROMPTS[: options.prompts], scenario, store, pictures, methods_of)
    print(table(all_results(options.results, "depths")))


def method_of(case: str, grid: str, progress: Progress) -> Method:
    """The method of a case in `CASES` on a grid in `GRIDS`."""
    factor, deeper = CASES[case]
    settings = Settings(enabled=True, factor=factor, max_depth=2, deeper_factor=deeper, moving=GRIDS[grid])
    return todo(settings, lambda: progress.step)


def methods_of(scenario: Scenario, progress: Progress) -> dict[str, Method]:
    """Name -> method, for all cases and grids."""
    methods = [method_of(case, grid, progress) for case in CASES for grid in GRIDS]
    return {method.name: method for method in methods}


def table(results: dict) -> str:
    """Markdown: a table with a row for each case, and columns for each scenario and grid.

    Each cell has the error of the final latent, and how many times as fast as dense.
    """
    columns = [(key, grid) for key in results for grid in GRIDS]
    heads = [f"{key.rpartition(', guidance')[0]} ({medians(results[key])}), {grid}" for key, grid in columns]
    lines = [f"| downsampled | {' | '.join(heads)} |", "|---" * (1 + len(columns)) + "|"]
    for case in CASES:
        texts = []
        for key, grid in columns:
            found = summary(results[key])[method_of(case, grid, Progress()).name]
            texts.append(f"{100 * found['error'][0]:.1f} %, {found['speed'][0]:.2f} times")
        lines.append(f"| {case} | {' | '.join(texts)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
