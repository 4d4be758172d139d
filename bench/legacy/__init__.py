"""The window of the sources: completed requests only, under overload, with unequal admission.

Every cell is measured twice from the same requests: as the sources did, by the tokens of requests
that completed in the window, and honestly, by all tokens that arrived in it. Two admissions times
two topologies tell which of the two makes the large ratio.
"""
