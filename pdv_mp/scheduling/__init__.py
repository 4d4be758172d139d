"""The scheduler of a replica: its requests, slots and blocks, and what it asks of the stages."""
