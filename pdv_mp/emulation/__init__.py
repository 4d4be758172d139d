"""A device that is a table of costs: everything is real but the arithmetic of the models."""
