"""What handing work between processes costs: ``python -m bench.handoff``."""
