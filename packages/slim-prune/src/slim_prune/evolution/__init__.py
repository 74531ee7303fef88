"""Automated search over how many channels each group keeps.

``config.py``
    the options;
``space.py``
    the points, all of which meet the budget;
``searchers.py``, ``cma.py``
    which candidate comes next: random, aging evolution, simulated annealing, CMA-ES;
``scoring.py``
    how good a candidate is: surgery on a copy, short fine-tuning, recalibration, evaluation;
``workers.py``
    where candidates are scored;
``journal.py``
    the memory that a killed search resumes from;
``driver.py``, ``engine.py``
    the loop, and what it is made of;
``result.py``
    trials, Pareto front, curves.

The public names are :func:`slim_prune.search` and the allocation ``evolution``.
"""
