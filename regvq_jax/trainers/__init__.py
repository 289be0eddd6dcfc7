"""What differs by stage: each trainer knows its config, its state, its step and its evaluations."""
