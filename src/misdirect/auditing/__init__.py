"""Every attack on any pair of checkpoints, within a given time; the recovered share."""
