"""The stages that run a model: prefill, draft, verify.

A stage has an inbox, forms one batch of what is in it, runs it, and returns columns. It knows slots
and token ids; which process the results go to is the worker's business.
"""
