"""GCG: a suffix of tokens found by gradient and search."""
