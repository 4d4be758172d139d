"""The numeric claims of the source documents, and what a run has to say of each."""
