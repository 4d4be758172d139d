"""How many tokens to draft in a cycle, decided from what cycles cost and what drafts are worth.

``controller``: the interface. ``fixed``, ``feedback`` and ``goodput`` are three controllers, made
by ``make``. ``goodput`` rests on ``acceptance_estimate`` (what drafts are worth), ``step_costs``
and ``draft_costs`` (what they cost), and ``exploration`` (how it stays informed while it drafts
nothing).
"""
