"""Every attack on any pair of checkpoints, within a given time: what of that which was removed comes back."""
