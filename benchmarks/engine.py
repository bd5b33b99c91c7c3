"""The engine against the two-model form: seconds an update, and peak memory above what the imports take.

Both make the same RMU updates (4 forget and 4 retain samples of 256 tokens by default) on the same weights. The
two-model form is what research scripts do: a frozen and an updated full model, three full forward passes and a backward
pass an update. Each runs in a process of its own, in turn, twice, and the better of each pair counts.

    python benchmarks/engine.py [--updates 6] [--tokens 256] [--batch 4]

prints a JSON line with both and their ratios.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from functools import partial


def peak_mib() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def samples(batch: int, tokens: int, updates: int) -> list[list[int]]:
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randint(100, 40000, (batch * updates, tokens), generator=generator).tolist()


def one_model(batch: int, tokens: int, updates: int, folder: str) -> dict[str, float]:
    """misdirect: prefix loaded, capture and replay."""
    from transformers import AutoModelForCausalLM  # noqa: F401 - both forms start from the same imports

    from misdirect.config import UnlearnConfig
    from misdirect.model.load import load_lm
    from misdirect.recipes import resolve
    from misdirect.unlearning import rmu
    from misdirect.unlearning.arithmetic import CLEAN
    from misdirect.unlearning.schedule import Samples
    from misdirect.unlearning.steering import control_vectors
    from misdirect.unlearning.train import Prepared, initial_state, train

    before = peak_mib()
    lm = load_lm(folder, 7, "cpu", "float32")
    sizes: dict[str, int] = {"batch_size": batch, "retain_batch_size": batch, "max_tokens": tokens, "updates": updates}
    config = UnlearnConfig(recipe="demo", steering="500", **sizes)
    (direction,) = control_vectors(1, 576, 0)
    ids = samples(batch, tokens, updates)
    trained = rmu.Trained(lm, dict.fromkeys((5, 6, 7), "mlp.down_proj.weight"))
    targets = {"a": rmu.Target(direction, 500 * direction, 500.0, 100.0, 100.0)}
    losses = partial(rmu.losses, trained, targets, CLEAN)
    resolved = resolve(config, 30)
    plan = CLEAN.updates(Samples({"a": ids}, {"r": ids}, [1.0]), resolved)
    times: list[float] = []
    job = Prepared(lm, resolved, plan, trained.names, losses, {})
    train(job, initial_state(job), lambda _, line: times.append(line["seconds"]))
    return {"seconds": sorted(times[1:])[len(times[1:]) // 2], "mib": peak_mib() - before}


def two_models(batch: int, tokens: int, updates: int, folder: str) -> dict[str, float]:
    """The usual form: two full models, three full forward passes."""
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM

    import misdirect.unlearning.rmu  # noqa: F401

    before = peak_mib()
    updated, frozen = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2))
    for model in (updated, frozen):
        model.requires_grad_(False)
    weights = [updated.model.layers[i].mlp.down_proj.weight.requires_grad_() for i in (5, 6, 7)]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.0)
    seen: dict[str, torch.Tensor] = {}
    updated.model.layers[7].register_forward_hook(lambda m, a, out: seen.__setitem__("updated", out))
    frozen.model.layers[7].register_forward_hook(lambda m, a, out: seen.__setitem__("frozen", out))
    ids = torch.tensor(samples(batch, tokens, updates))
    target = torch.full((576,), 20.0)
    times = []
    for step in range(updates):
        started = time.perf_counter()
        x = ids[step * batch : (step + 1) * batch]
        updated(input_ids=x)
        loss = F.mse_loss(seen["updated"], target.expand_as(seen["updated"]))
        updated(input_ids=x)
        with torch.no_grad():
            frozen(input_ids=x)
        loss = loss + 100 * F.mse_loss(seen["updated"], seen["frozen"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - started)
    return {"seconds": sorted(times[1:])[len(times[1:]) // 2], "mib": peak_mib() - before}


FORMS = {"one_model": one_model, "two_models": two_models}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--form", choices=FORMS, help="run one form in this process")
    args = parser.parse_args()
    from misdirect.model.demo import model_folder

    folder = str(model_folder())
    if args.form:
        print(json.dumps(FORMS[args.form](args.batch, args.tokens, args.updates, folder)))
        return
    best: dict[str, dict[str, float]] = {}
    for form in [*FORMS, *FORMS]:
        command = [sys.executable, __file__, "--form", form, f"--updates={args.updates}", f"--tokens={args.tokens}"]
        command += [f"--batch={args.batch}"]
        got = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        known = best.setdefault(form, got)
        best[form] = {key: min(known[key], got[key]) for key in got}
    ratios = {key: best["two_models"][key] / best["one_model"][key] for key in ("seconds", "mib")}
    print(json.dumps({"tokens": args.tokens, "batch": args.batch, **best, "ratio": ratios}, indent=1))


if __name__ == "__main__":
    main()
