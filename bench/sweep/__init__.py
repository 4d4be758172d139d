"""``pdv-bench sweep``: candidates beside each other, in interleaved blocks, under each load."""
