"""Greedy coordinate gradient: which tokens in the room of some prompts make their targets most likely.

The loss is the mean over the prompts of the target's negative log-likelihood. A step takes the gradient with respect to
the one-hot vector of each adversarial position (Zou et al. 2023, arXiv 2307.15043), keeps the tokens of steepest descent at
each, tries single swaps among them exactly, and moves where the loss falls. Deviations, all for small budgets: the text
never gets worse; the best swaps of several positions are also tried together; a swap once tried from a text is not tried
again; with many prompts, swaps are tried on a few of them first.

    state = start(job, seed=0)
    state = search(job, state, until=50, settings=Settings(candidates=64))
    state.loss, text_of(lm, job.frames[0], state.ids)
"""
