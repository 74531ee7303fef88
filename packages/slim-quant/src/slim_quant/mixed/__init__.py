"""Mixed precision: which bits each layer gets, and which layers stay in float.

:func:`slim_quant.mixed.choose.choose` decides from measured sensitivities under an accuracy goal or a budget, and
verifies what it decided by measuring.
"""
