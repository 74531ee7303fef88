"""Never slower: a quantized model is kept only where its file is measured to be faster than the float one.

:func:`slim_quant.faster.decide.never_slower` times, profiles, leaves what loses in float, and times again.
"""
