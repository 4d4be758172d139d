"""Steps of fixed shape, recorded once and replayed: CUDA graphs, and what they read and write."""
