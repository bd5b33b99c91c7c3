"""A run's change as something that other tools read: a whole checkpoint, a LoRA adapter, or the change alone."""
