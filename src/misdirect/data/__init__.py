"""Files, folders and hub data sets -> texts, questions, prompts, batches."""
