"""Triton kernels for a GPU. Only what needs them imports them: triton is no dependency."""
