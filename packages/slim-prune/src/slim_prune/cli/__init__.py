"""``slim prune``: the command line of slim-prune. One module per command, imported when it is run."""

from __future__ import annotations

from slim_core.cli.app import SlimGroup
from slim_core.registry import Lazy

prune = SlimGroup(
    "prune",
    help="Plan which channels to remove, remove them, and look at plans.",
    no_args_is_help=True,
)
prune.add_lazy("plan", Lazy("slim_prune.cli.plan", "plan_command"), "Plan which channels to remove.")
prune.add_lazy("apply", Lazy("slim_prune.cli.apply", "apply_command"), "Carry a written plan out; write what is left.")
prune.add_lazy("diff", Lazy("slim_prune.cli.show", "diff_command"), "Say where two written plans differ.")
prune.add_lazy(
    "search", Lazy("slim_prune.cli.search", "search_command"), "Search for channels by scoring pruned copies."
)
prune.add_lazy(
    "sensitivity",
    Lazy("slim_prune.cli.sensitivity", "sensitivity_command"),
    "Measure what each channel group can spare.",
)
prune.add_lazy(
    "sparsify", Lazy("slim_prune.cli.sparsify", "sparsify_command"), "Set single weights to zero, for a smaller file."
)
prune.add_lazy("show", Lazy("slim_prune.cli.show", "show_command"), "Show a written plan.")
