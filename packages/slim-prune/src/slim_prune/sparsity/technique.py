"""The recipe step ``prune.sparsity``: zeros at once or gradually, fine-tuned with the zeros held in place."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from slim_core.registry import Registry
from slim_core.technique import Run, StepResult, StrictConfig
from slim_core.training.config import FitConfig
from slim_core.workload import Workload
from slim_prune.sparsity.errors import SparsityError
from slim_prune.sparsity.orders import Order, reorder_
from slim_prune.sparsity.planning import check_figures, plan
from slim_prune.sparsity.schemes import NM, Block, Scheme, resolve
from slim_prune.sparsity.scores import BATCHES, require_data
from slim_prune.sparsity.sparsity_plan import SparsityPlan

#: What every run says: the step promises a smaller file, and nothing else.
NO_LATENCY = (
    "zeros make the checkpoint smaller, not the model faster: onnxruntime's and PyTorch's dense kernels compute with "
    "them as with any number; for latency remove channels (prune.uniform, prune.latency)"
)


class GradualConfig(StrictConfig):
    """Gradual magnitude pruning (Zhu and Gupta, 2017, arXiv 1710.01878).

    Attributes:
        begin: share of the run at which the first weights are masked.
        end: share of the run at which the final sparsity is reached.
        every: optimizer steps between two raises; ``null``: about 30 raises.
        initial: sparsity at the first raise.
    """

    name: Literal["gmp"] = "gmp"
    begin: float = Field(0.0, ge=0, lt=1)
    end: float = Field(0.75, gt=0, le=1)
    every: int | None = Field(None, ge=1)
    initial: float = Field(0.0, ge=0, lt=1)


def _schedule(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) and value == "gmp" else value


class SparsityConfig(StrictConfig):
    """Configuration of ``prune.sparsity``.

    Attributes:
        scheme: ``unstructured``, ``block``, ``2:4`` or any N:M, or a mapping with ``name`` and the scheme's options.
        sparsity: the share of the selected weights that becomes zero.
        budget: ``{nonzero: 0.2}``: the most parameters of the whole model that stay other than zero.
        threshold: scores below it become zero.
        ratios: the share that stays, by glob; such weights do not compete.
        include: globs over module paths or parameter names; empty: all weights of two dimensions or more.
        exclude: globs; they win.
        importance: ``magnitude``, or ``taylor`` or ``movement``, which need training data.
        batches: how many training batches these look at.
        schedule: ``one_shot``, or ``gmp`` (a name, or a mapping with its options), which needs ``fit``.
        mask_gradients: set the gradients of masked weights to zero too.
        fit: training, with the zeros held in place; ``null``: none.
    """

    scheme: str | dict[str, Any] = "unstructured"
    sparsity: float | None = None
    budget: dict[str, float | int | str] | None = None
    threshold: float | None = None
    ratios: dict[str, float] = Field(default_factory=dict)
    include: list[str] = Field(default_factory=list)
    exclude: list[str] = Field(default_factory=list)
    importance: Literal["magnitude", "taylor", "movement"] = "magnitude"
    batches: int = Field(BATCHES, ge=1)
    schedule: Annotated[Literal["one_shot"] | GradualConfig, BeforeValidator(_schedule)] = "one_shot"
    mask_gradients: bool = False
    fit: FitConfig | None = None


class SparsityPruning:
    """Set weights to zero, and store them in fewer bytes. Shapes stay as they are."""

    name: ClassVar[str] = "prune.sparsity"
    Config: ClassVar[type[SparsityConfig]] = SparsityConfig

    @staticmethod
    def check(config: SparsityConfig, registry: Registry) -> None:
        """Check what needs no model: called when a recipe is read, before anything runs."""
        scheme = resolve(config.scheme)
        check_figures(scheme, config.sparsity, config.budget, config.threshold, config.ratios)
        if config.schedule == "one_shot":
            return
        if config.fit is None:
            raise SparsityError("gradual pruning happens while training, and there is no training", hint="add fit: {…}")
        if config.budget is not None or config.threshold is not None:
            raise SparsityError("gradual pruning goes to a share of zeros", hint="sparsity: 0.9, or ratios by glob")
        if config.importance != "magnitude":
            raise SparsityError(f"gradual pruning goes by magnitude, not by {config.importance}")
        if config.schedule.begin >= config.schedule.end:
            raise SparsityError("the schedule begins before it ends", where="schedule.begin")

    def rehearse(self, workload: Workload, config: SparsityConfig, run: Run) -> Workload:
        """Plan with the untrained weights: shows whether globs match and the budget is in reach.

        Raises:
            BudgetError: the budget is out of reach.
            PatternError: a pattern matches nothing.
            DataError: the importance needs data, and there is none.
        """
        require_data(config.importance, workload.task, workload.train)
        planned = _plan(workload, config, _still(resolve(config.scheme)), "magnitude", run)
        return workload.with_model(planned.apply(workload.model), planned.transform())

    def run(self, workload: Workload, config: SparsityConfig, run: Run) -> StepResult:
        """Plan, apply and train; ``sparsity.safetensors`` in the step's folder is the plan."""
        self.check(config, run.registry)
        run.folder.mkdir(parents=True, exist_ok=True)
        if config.schedule == "one_shot":
            planned, result, history = self._at_once(workload, config, run)
        else:
            planned, result, history = self._gradually(workload, config, config.schedule, run)
        planned.save(run.folder / "sparsity.safetensors")
        left = planned.masks.violations(result.model)
        if left:
            raise SparsityError(f"{left} weights that should be zero are not", hint="this is a bug: please report it")
        details: dict[str, Any] = {
            "layers": [
                {"name": row["name"], "kept": row["kept"], "total": row["total"], "sparsity": round(row["sparsity"], 6)}
                for row in planned.summary()
            ],
            "sparsity": planned.sparsity,
            "nonzero parameters": planned.nonzero,
            "parameters": planned.params,
        }
        if history is not None:
            details["history"] = history
        result = workload.with_model(result.model, planned.transform())
        return StepResult(result, details, (*planned.notes, *_said(planned.scheme)))

    def _at_once(self, workload: Workload, config: SparsityConfig, run: Run) -> tuple[SparsityPlan, Workload, Any]:
        from slim_prune.sparsity.callbacks import KeepMasks

        planned = _plan(workload, config, resolve(config.scheme), config.importance, run)
        sparse = workload.with_model(planned.apply(workload.model))
        if config.fit is None:
            return planned, sparse, None
        from slim_core.training import fit

        keep = KeepMasks(planned.masks, gradients=config.mask_gradients)
        fitted = fit(sparse, config.fit, run=run, callbacks=[keep], inplace=True)
        return planned, fitted.workload, [dict(row) for row in fitted.history]

    def _gradually(
        self, workload: Workload, config: SparsityConfig, schedule: GradualConfig, run: Run
    ) -> tuple[SparsityPlan, Workload, Any]:
        from slim_core.training import fit
        from slim_prune.sparsity.callbacks import GradualSparsity

        assert config.fit is not None  # noqa: S101 - checked
        scheme = resolve(config.scheme)
        base = workload
        orders: tuple[Order, ...] = ()
        lines: tuple[str, ...] = ()
        if isinstance(scheme, NM) and scheme.permute:
            first = _plan(workload, config, scheme, "magnitude", run)
            base, orders, lines = _ordered(workload, first), first.orders, first.notes
            scheme = _still(scheme)
        gradual = GradualSparsity(
            config.sparsity, scheme=scheme, begin=schedule.begin, end=schedule.end, every=schedule.every,
            initial=schedule.initial, ratios=config.ratios, include=config.include, exclude=config.exclude,
            gradients=config.mask_gradients,
        )  # fmt: skip
        fitted = fit(base, config.fit, run=run, callbacks=[gradual])
        planned = _plan(fitted.workload, config, scheme, "magnitude", run)
        planned = SparsityPlan(
            planned.model_class, planned.scheme, gradual.masks, planned.axes, planned.importance, planned.asked,
            planned.params, orders, (*lines, *planned.notes),
        )  # fmt: skip
        return planned, fitted.workload, [dict(row) for row in fitted.history]


def _plan(workload: Workload, config: SparsityConfig, scheme: Scheme, importance: str, run: Run) -> SparsityPlan:
    return plan(
        workload.model,
        workload.example_inputs,
        scheme=scheme,
        sparsity=config.sparsity,
        budget=config.budget,
        threshold=config.threshold,
        ratios=config.ratios,
        include=config.include,
        exclude=config.exclude,
        importance=importance,
        task=workload.task,
        train=workload.train,
        batches=config.batches,
        seed=run.seed,
        progress=run.progress,
    )


def _still(scheme: Scheme) -> Scheme:
    return NM(scheme.n, scheme.m, scheme.layout) if isinstance(scheme, NM) else scheme


def _ordered(workload: Workload, planned: SparsityPlan) -> Workload:
    model = copy.deepcopy(workload.model)
    reorder_(planned.orders, model)
    return workload.with_model(model)


def _said(scheme: Scheme) -> Iterable[str]:
    yield NO_LATENCY
    if isinstance(scheme, NM) and (scheme.n, scheme.m) == (2, 4):
        yield "2:4 is what the sparse tensor cores of NVIDIA GPUs take, through TensorRT or torch.sparse; not on CPUs"
    if isinstance(scheme, Block):
        yield "blocks pay off on runtimes that skip them; none of the backends that Slim measures does"


__all__ = ["GradualConfig", "SparsityConfig", "SparsityPruning"]
