"""How many units each channel group keeps: one small file per way of deciding.

``problem.py`` holds what they share: the groups with the counts that rounding and floors permit, and the costs of a
choice. An allocation is a function ``(problem) -> {group name: kept units}`` whose result meets every bound.
"""
