"""One Hugging Face decoder: load, check, find blocks, capture and replay, change, score."""
