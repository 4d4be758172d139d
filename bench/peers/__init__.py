"""Our server beside the engines that a user would pick instead, in one interleaved run."""
