"""Models: loading, finding blocks, capture and replay, the delta, log-probabilities. Hooks live in `activations` alone."""
