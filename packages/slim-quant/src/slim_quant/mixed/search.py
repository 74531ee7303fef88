"""The search for an assignment of bits: within a budget by a knapsack, under a goal along a chain of models.

Not here: what a model costs (``costs.py``), how one is built and measured for real (``judge.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from slim_core.budget import Bound
from slim_core.errors import BudgetError
from slim_quant.bits import FLOAT
from slim_quant.mixed import chain as chains
from slim_quant.mixed import knapsack
from slim_quant.mixed.costs import Costs
from slim_quant.mixed.judge import EPS, Judge, Trial
from slim_quant.sensitivity.analysis import Ground
from slim_quant.sensitivity.engine import Program, Sweep
from slim_quant.sensitivity.judge import Evaluation, Figures, References
from slim_quant.sensitivity.switches import OFF, Switches, everything, switches

Assignment = dict[str, str]


@dataclass(eq=False)
class Search:
    """What is searched.

    Args:
        ground: the graph and its scales.
        evaluation: the samples of the search.
        costs: of the units that are chosen for.
        losses: unit -> choice -> loss, of all units.
        memory: bytes that may be kept.
        trials: what was measured.
    """

    ground: Ground
    evaluation: Evaluation
    costs: Costs
    losses: Mapping[str, Mapping[str, float]]
    memory: int
    trials: list[Trial] = field(default_factory=list)
    _before: Figures | None = None
    _references: References | None = None

    @property
    def chosen(self) -> dict[str, Mapping[str, float]]:
        """The losses of the units that have a cost."""
        return {unit: self.losses[unit] for unit in self.costs.table}

    def total(self, assignment: Mapping[str, str]) -> float:
        """Return the cost of a model."""
        return self.costs.total({unit: assignment[unit] for unit in self.costs.table})

    def within(self, bound: Bound) -> Assignment:
        """Return the assignment with the least sum of losses that meets a bound.

        Raises:
            BudgetError: none does; says what is reachable.
        """
        limit = bound.limit(self.costs.original)
        rows = [list(row.items()) for row in self.chosen.values()]
        table = [
            [self.costs.table[unit][choice] for choice, _ in row] for unit, row in zip(self.chosen, rows, strict=True)
        ]
        picks = knapsack.solve([[loss for _, loss in row] for row in rows], table, limit - self.costs.rest)
        if picks is None:
            least = self.costs.rest + sum(min(row) for row in table)
            raise BudgetError(
                f"the budget {bound} cannot be met: the cheapest model has {least:,.6g} of {self.costs.name}, "
                f"{least / self.costs.original:.1%} of the original",
                hint="raise the budget, or allow fewer bits in options",
            )
        found = {
            unit: row[pick][0] for (unit, row), pick in zip(zip(self.chosen, rows, strict=True), picks, strict=True)
        }
        return self.completed(found)

    def keeping(self, limit: float, judge: Judge, *, built: bool) -> Assignment:
        """Return the first model of the chain that is worse than the float one by at most ``limit``.

        Args:
            limit: in the metric's own unit.
            judge: builds and measures models.
            built: build every model on the way; otherwise quantizers are switched on, and only the last ones are built.

        Raises:
            BudgetError: no model of the chain keeps the limit.
        """
        start, steps = chains.chain(self.chosen, self.costs.table)
        last = len(steps)

        def model(position: int) -> Assignment:
            return self.completed(chains.at(start, steps, position))

        def simulated(position: int) -> bool:
            trial = self._try(model(position), f"after {position} of {last} upgrades")
            return trial.drop is not None and trial.drop <= limit + EPS

        def real(position: int) -> bool:
            assignment = model(position)
            drop = judge.drop_of(assignment)
            label = f"after {position} of {last} upgrades"
            self.trials.append(Trial(label, self.total(assignment), judge.metric_of(assignment), drop, True))
            return drop is not None and drop <= limit + EPS

        first = 0 if built else chains.first_that_passes(last, simulated)
        found = first + chains.first_that_passes(last - first, lambda offset: real(first + offset))
        if found == last and not real(last):
            raise BudgetError(
                f"no model keeps the goal: with the most bits everywhere the metric drops by "
                f"{judge.drop_of(model(last)):.4g}, and {limit:.4g} are allowed",
                hint="allow float layers, more bits in options, or a larger max_drop",
            )
        return model(found)

    def completed(self, assignment: Mapping[str, str]) -> Assignment:
        """Add the units that cost nothing: quantized with the most bits, unless all others are float."""
        all_float = all(choice == FLOAT for choice in assignment.values())
        rest = FLOAT if all_float else self.ground.bits[-1].name
        return {unit.name: assignment.get(unit.name, rest) for unit in self.ground.units}

    def _try(self, assignment: Assignment, label: str) -> Trial:
        """Measure a model by switching quantizers on in the float graph."""
        scales = self.ground.scales
        units = {unit.name: unit for unit in self.ground.units}
        on = [(units[name], scales[choice]) for name, choice in assignment.items() if choice != FLOAT]
        chosen = switches(on)
        names = set(assignment.values())
        if len(names) == 1 and FLOAT not in names:
            chosen = everything(self.ground.units, scales[names.pop()])
        figures = self._judged(chosen)
        before, after = self._judged(OFF).metric, figures.metric
        drop = None
        if before is not None and after is not None:
            drop = before - after if self.evaluation.higher_is_better else after - before
        trial = Trial(label, self.total(assignment), after, drop, False)
        self.trials.append(trial)
        return trial

    def _judged(self, chosen: Switches) -> Figures:
        if chosen is OFF and self._before is not None:
            return self._before
        inputs = self.evaluation.inputs()
        program = Program(self.ground.graph, OFF)
        if self._references is None:
            self._references = References(program, inputs, self.memory // 4)
        sweep = Sweep(program, inputs, {0: program.change(chosen)}, memory=0)
        found = self.evaluation.judge(sweep.outputs(0), self._references)
        if chosen is OFF:
            self._before = found
        return found
