"""What pages, cards and terminals say: sentences and tables."""
