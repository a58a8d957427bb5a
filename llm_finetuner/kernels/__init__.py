"""Hand-written inner loops, each with a plain PyTorch way that is taken wherever it cannot be built."""
