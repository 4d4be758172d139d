"""Shape-true stand-ins: a small model's function inside a checkpoint of a big model's shape."""
