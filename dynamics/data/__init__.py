"""Records to batches: sources, tokenizers, templates, mixtures, packing."""
