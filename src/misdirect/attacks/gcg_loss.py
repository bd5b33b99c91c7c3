"""The loss of many candidate texts in one prompt, and its gradient, with everything before the text computed once.

A `Frame` is a prompt with room for S tokens: before + text + after + target. The loss of a text is
- sum_i log p(target_i | before, text, after, target_<i), natural logarithm, in fp32 at least. Three forms, from the fastest:

- "tree": the candidates stand one behind the other in rows, each from its first changed token on; a mask lets it see the
  cached tokens before the text, the unchanged tokens before its change, and itself. The cache is not copied.
- "cached": the key-value cache of what is before the text is shared by a batch of candidates.
- "plain": every candidate as a full forward pass; for models without such a cache.

`form_of` picks the fastest that agrees with the plain form on this very prompt.

    job = job_of(lm, frames, num_tokens=12)
    losses(job, 0, [(5, 6, 7), (5, 9, 7)])      # one number a candidate
"""
