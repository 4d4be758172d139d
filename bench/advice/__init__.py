"""Which topology and draft length to use, and how far such advice is from what was measured."""
