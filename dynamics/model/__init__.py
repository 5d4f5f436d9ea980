"""The network: LLaMA as a plain pytree, its attention, how it lies on a mesh, and greedy decoding."""
