"""NaN and infinity: no accuracy, no verdict and no gate is computed from a log-probability that is not finite."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from attack_cases import tiny_inputs
from misdirect import runs
from misdirect.attacks import lens, noise, probes, prune, quantize, relearn
from misdirect.attacks.interface import Attack
from misdirect.auditing.gate import gate
from misdirect.cli.main import main
from misdirect.config import AuditConfig
from misdirect.model import packed
from misdirect.model.delta import Delta, load_delta, save_delta
from misdirect.model.finite import NotFinite
from misdirect.model.lm import LM
from misdirect.model.score import Encoded, score, score_batch, score_plainly, text_logprobs
from misdirect.runs import unsound
from misdirect.runs.collateral import collateral
from tiny import LAYERS, tiny_folder, tiny_model, tiny_tokenizer

CASES = Path(__file__).parents[2] / "shared" / "cases"
DOWN = "model.layers.1.mlp.down_proj.weight"
RARE = "\u0436"  # its tokens stand in one item alone


def lm_of(**settings: Any) -> LM:
    return LM(tiny_model("llama", **settings).requires_grad_(False), tiny_tokenizer(), "tiny", LAYERS, "model.layers")


def spoil_rare(model: Any) -> None:
    """A row of the embeddings is NaN: one item in many meets it."""
    with torch.no_grad():
        model.get_input_embeddings().weight[tiny_tokenizer()(RARE)["input_ids"]] = math.nan


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sound model in `sound`, questions on `bio`, text and prompts; one of each holds the rare letter."""
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path, "llama", num_hidden_layers=4).rename("sound")
    words = [RARE if i == 7 else f"water {i}" for i in range(24)]
    asked = [
        {"question": f"Which {w}?", "choices": ["the river", "the house"], "answer": i % 2} for i, w in enumerate(words)
    ]
    for name, rows in {
        "bio": asked,
        "text": [{"text": f"the {w} of the house"} for w in words],
        "said": [{"prompt": f"the {w}"} for w in words],
    }.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def copy_of(name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> str:
    os.mkdir(name)
    for path in Path("sound").iterdir():
        if path.suffix != ".safetensors":
            (Path(name) / path.name).write_bytes(path.read_bytes())
    weights = load_file("sound/model.safetensors")
    change(weights)
    save_file(weights, f"{name}/model.safetensors", {"format": "pt"})
    return name


def rare_nan(weights: dict[str, torch.Tensor]) -> None:
    weights["model.embed_tokens.weight"][tiny_tokenizer()(RARE)["input_ids"]] = math.nan


def line_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error, whatever the width of the terminal."""
    return " ".join(capsys.readouterr().err.split("misdirect: ")[-1].split())


# ------------------------------------------------------------------------------------------------ the door


def test_one_bad_item_of_many_is_enough() -> None:
    lm = lm_of()
    spoil_rare(lm.model)
    rare = tiny_tokenizer()(RARE)["input_ids"]
    texts = [[5, 6, 7, i] for i in range(10, 60)]
    assert len(text_logprobs(lm, texts)) == 50
    with pytest.raises(NotFinite, match=r"^tiny gives NaN or infinity for 1 of 51 texts, .* model.embed_tokens.weight"):
        text_logprobs(lm, [*texts, [5, *rare, 6]])
    items = [Encoded(text, [[8], [9, 10]]) for text in texts]
    assert len(score(lm, items)) == 50
    with pytest.raises(NotFinite, match="for 2 of 52 questions"):
        score(lm, [Encoded(rare, [[8], [9]]), *items, Encoded([5], [[8], [*rare, 9]])])


def test_padding_of_nan_spoils_nothing() -> None:
    """Its row of the embeddings is read beside shorter texts, and never counts."""
    lm, sound = lm_of(), lm_of()
    lm.model.get_input_embeddings().weight[0] = math.nan
    texts = [[5, 6, 7, i] * n for i, n in ((10, 1), (11, 3), (12, 9))]
    found = text_logprobs(lm, texts)
    assert all(a == pytest.approx(b, abs=1e-4) for a, b in zip(found, text_logprobs(sound, texts), strict=True))
    items = [Encoded(text, [[8], [9, 10]]) for text in texts]
    assert [s.logprobs for s in score(lm, items)] == [pytest.approx(s.logprobs, abs=1e-4) for s in score(sound, items)]


def test_infinity_counts_on_an_asked_token_alone() -> None:
    """A padded vocabulary: logits of -inf that nothing asks for."""
    lm = lm_of()
    padded = range(300, 400)
    lm.model.lm_head.register_forward_hook(
        lambda m, a, out: out.index_fill(-1, torch.tensor(padded, device=out.device), -math.inf)
    )
    items = [Encoded([5, 6], [[8, 9], [10]]), Encoded([7], [[11], [12]])]
    found, plain = score(lm, items), score_plainly(lm, items)
    assert [f.logprobs for f in found] == [pytest.approx(p.logprobs, abs=1e-4) for p in plain]
    with pytest.raises(NotFinite, match=r"for 1 of 2 questions, .* weights that do not overflow"):
        score(lm, [items[0], Encoded([7], [[11], [302]])])


def test_half_precision_that_overflows_is_told_to_use_another() -> None:
    lm = lm_of()
    lm.model.get_submodule("model.layers.2.mlp.up_proj").weight.mul_(4000)
    lm.model.get_submodule("model.layers.2.mlp.gate_proj").weight.mul_(4000)
    assert text_logprobs(lm, [[5, 6, 7]])
    lm.model.half()
    with pytest.raises(NotFinite, match=r"for 1 of 1 texts, .* expected --dtype float32$"):
        text_logprobs(lm, [[5, 6, 7]])


def test_a_model_of_nan_proves_nothing_of_packed_rows() -> None:
    lm = lm_of()
    norm = lm.model.model.norm.weight
    before = norm.clone()
    norm.fill_(math.nan)
    assert not packed.fits(lm, score_batch)
    norm.copy_(before)
    assert packed.fits(lm, score_batch), "asked again once it gives numbers"


# ------------------------------------------------------------------------------------------------ evaluate

SETS = {
    "bio": (["--questions", "bio=bio.jsonl", "--formats", "cloze"], "1 of 24 questions"),
    "text": (["--text", "text=text.jsonl"], "1 of 24 texts"),
    "said": (["--prompts", "said=said.jsonl", "--new-tokens", "3"], "1 of 24 answers"),
}


@pytest.mark.parametrize("name", SETS)
def test_evaluate_refuses_and_keeps_what_is_measured(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy_of("spoilt", rare_nan)
    Path("fine.jsonl").write_text('{"text": "the water of the house"}\n{"text": "stone bread north"}\n')
    arguments, count = SETS[name]
    assert main(["evaluate", "spoilt", "--text", "fine=fine.jsonl", "--out", "x"]) == 0
    assert main(["evaluate", "spoilt", *arguments, "--out", "x"]) == 2
    line = line_of(capsys)
    assert line.startswith(
        f"base, {name}: spoilt gives NaN or infinity for {count}, and nothing is computed from that; "
    )
    assert "model.embed_tokens.weight" in line
    assert [path.name for path in Path("x/results").rglob("*.json")] == ["nll.fine.json"]


def test_float16_says_what_to_type_and_that_works(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def grow(weights: dict[str, torch.Tensor]) -> None:
        for name in ("up_proj", "gate_proj"):
            weights[f"model.layers.1.mlp.{name}.weight"] *= 4000

    copy_of("large", grow)
    arguments = ["evaluate", "large", *SETS["bio"][0], "--out"]
    assert main([*arguments, "half", "--dtype", "float16"]) == 2
    assert line_of(capsys).endswith(
        "for 24 of 24 questions, and nothing is computed from that; expected --dtype float32"
    )
    assert main([*arguments, "whole", "--dtype", "float32"]) == 0


# ------------------------------------------------------------------------------------------------ audit and gate


def audit(unlearned: str, *more: str) -> int:
    arguments = ["audit", "sound", unlearned, "--questions", "bio=bio.jsonl", "--forget", "bio=text.jsonl", "--formats"]
    return main([*arguments, "cloze", "--out", "audit", "--fail-above", "0.3", *more])


def test_the_gate_does_not_pass_a_model_of_which_some_answers_are_nan(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line of text is fine, and 1 question of 24 is not."""
    copy_of("spoilt", rare_nan)
    assert audit("spoilt") == 2
    assert line_of(capsys).startswith("unlearned, bio: spoilt gives NaN or infinity for 1 of 24 questions")
    assert Path("audit/results/base/mcq.bio.json").exists(), "the base's answers are kept"
    assert not list(Path("audit/results").glob("unlearned/*"))
    assert audit("spoilt") == 2, "nor when it is asked again"


def test_nor_one_whose_delta_has_huge_values(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_delta(Delta({DOWN: load_file("sound/model.safetensors")[DOWN] * 0 + 3e38}), Path("huge.safetensors"))
    assert audit("huge.safetensors") == 2
    assert "huge.safetensors holds values of model.layers.1.mlp.down_proj.weight that are not finite" in line_of(capsys)


def test_a_gate_of_no_number_is_no_gate() -> None:
    row = {"attack": "strongest", "set": "bio", "metric": "recovered_share", "headline": True, "value": math.nan}
    settings = {"attack": "relearn", "text": "facts"}
    record = {"attacks": [{"status": "done", "settings": settings}], "removed": {"bio": {"removed": True}}}
    assert gate([row | {"value": 0.1}], record, 0.3) == 0
    with pytest.raises(ValueError, match="a recovered share is not a finite number"):
        gate([row], record, 0.3)


def attacks_of(module: Any, inputs: Any) -> list[Attack]:
    made = module.first(inputs, AuditConfig()) if module is relearn else module.attacks(inputs, AuditConfig())
    return [attack for attack in made if not attack.unavailable]


@pytest.mark.parametrize("module", [lens, probes, noise, quantize, relearn], ids=lambda m: m.__name__.split(".")[-1])
def test_an_attack_gives_no_number_from_what_is_none(module: Any) -> None:
    """It raises, so that the audit calls it failed and says why."""
    lm, inputs = tiny_inputs(count=80)
    with torch.no_grad():
        lm.model.get_submodule("model.layers.4.mlp.down_proj").weight.fill_(math.nan)
    attack = attacks_of(module, inputs)[0]
    with pytest.raises(ValueError, match=r"gives NaN or infinity|finetuning broke down|loss nan"):
        attack.run(lm, inputs, attack, lambda count: None)


def test_an_attack_that_overflows_has_failed(here: Path) -> None:
    """Noise is finite in float32 and not in float16: no accuracy of 0 comes out of it."""
    lm, inputs = tiny_inputs()
    lm.model.half()
    for name in ("up_proj", "gate_proj"):
        lm.model.get_submodule(f"model.layers.2.mlp.{name}").weight.fill_(200.0)
    (attack,) = attacks_of(noise, inputs)
    with pytest.raises(NotFinite, match="biology: llama gives NaN or infinity for 8 of 8 questions"):
        attack.run(lm, inputs, attack, lambda count: None)


def test_what_to_prune_is_not_chosen_by_nan() -> None:
    """The text that is read for the norms meets it; the questions would not."""
    lm, inputs = tiny_inputs()
    spoil_rare(lm.model)
    inputs = dataclasses.replace(inputs, retain_texts=[*inputs.retain_texts, f"the {RARE} house"])
    (attack,) = (a for a in attacks_of(prune, inputs) if a.name == "prune-wanda")
    with pytest.raises(NotFinite, match="for the inputs of"):
        attack.run(lm, inputs, attack, lambda count: None)


def test_steering_comes_from_norms_that_are_finite_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sample of 24 is NaN: the median of the others would be a number."""
    copy_of("spoilt", rare_nan)
    unlearn = ["--forget", "bio=text.jsonl", "--retain", "wiki=text.jsonl", "--block", "1", "--updates", "2"]
    assert main(["unlearn", "spoilt", *unlearn, "--batch-size", "8", "--out", "run"]) == 2
    assert "the states of bio after block 1 are not finite numbers before anything is trained" in line_of(capsys)
    assert main(["unlearn", "sound", *unlearn, "--steering", "1e308x", "--out", "other"]) == 2
    assert "the steering of bio comes out as inf; expected a finite number: a smaller --steering" in line_of(capsys)


# ------------------------------------------------------------------------------------------------ older results


def spoil(path: str, key: str = "cloze_logprobs") -> None:
    """As an older version stored a model without numbers."""
    result = json.loads(Path(path).read_text())
    for record in result["records"]:
        if "points" in record:
            for point in record["points"]:
                point |= {"logprobs": [None] * len(point["logprobs"]), "correct": False}
        else:
            record[key] = [None] * len(record[key]) if isinstance(record[key], list) else None
    Path(path).write_text(json.dumps(result))


def test_what_an_older_version_stored_is_read_and_nothing_is_concluded(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bio.jsonl").write_text(Path("bio.jsonl").read_text().replace(json.dumps(RARE)[1:-1], "x"))
    arguments = ["evaluate", "sound", *SETS["bio"][0], "--text", "text=text.jsonl", "--out", "old"]
    assert main(arguments) == 0
    spoil("old/results/base/mcq.bio.json")
    assert main(["report", "old"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("old/results/base/mcq.bio.json holds no finite log-probability in 24 of 24 records") == 1
    page = Path("old/report.html").read_text()
    assert "bio" not in page.split("</style>")[-1] or "accuracy" not in page.split("</style>")[-1]
    assert main(arguments) == 2
    assert "expected that file removed and the same command again: it is measured anew" in line_of(capsys)
    Path("old/results/base/mcq.bio.json").unlink()
    assert main(arguments) == 0
    rows = json.loads(Path("old/summary.json").read_text())
    assert {row["set"] for row in rows} == {"bio", "text"}


def result(model: str, records: list[dict[str, Any]], attack: str | None = None, measurement: str = "mcq") -> Any:
    return (
        Path(f"{attack}/{model}/{measurement}.json"),
        {"model": model, "attack": attack, "measurement": measurement, "set": "bio", "config": {}, "metrics": [],
         "records": records},
    )  # fmt: skip


def test_what_came_from_numbers_that_are_none_goes_with_them() -> None:
    good, bad = [{"cloze_logprobs": [-1.0, -2.0]}], [{"cloze_logprobs": [-1.0, None]}]
    points = [{"points": [{"logprobs": [-1.0]}, {"logprobs": [None]}]}]

    def left(*results: Any) -> list[tuple[Any, ...]]:
        return [unsound.place(r)[:3] for r in unsound.usable(results)[0]]

    both = [result("base", bad), result("unlearned", good)]
    assert left(*both) == [], "the paired test of the other model came from the base"
    assert left(result("base", good), result("unlearned", bad)) == [(None, "base", "mcq")]
    strongest = result("unlearned", [], "strongest", "recovered")
    strongest[1]["config"] = {"chosen": [["noise", {}], ["relearn", {}]]}
    own = [result("unlearned", [], name, "recovered") for name in ("noise", "relearn")]
    kept = left(result("unlearned", points, "noise"), result("unlearned", good, "relearn"), *own, strongest)
    assert kept == [("relearn", "unlearned", "mcq"), ("relearn", "unlearned", "recovered")]
    assert left(result("base", points, "none"), *own, strongest) == []
    assert left(*own, strongest) == [unsound.place(r)[:3] for _, r in (*own, strongest)]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"logprob": -3.0, "num_tokens": 4}, False),
        ({"logprob": None, "num_tokens": 4}, True),
        ({"logprobs": [-3.0, None]}, True),
        ({"scores": [[0.1], [0.2]], "answer": None}, False),
        ({"points": [{"scores": [None, 0.1], "block": 3}]}, True),
        ({"nll": [2.0, None], "steps_to_say": None}, True),
        ({"nll": [2.0, 1.0], "steps_to_say": None}, False),
        ({"answers": [{"sample": None, "turns": [{"finite": True, "base_nll": None, "base_tokens": 0}]}]}, False),
        ({"answers": [{"turns": [{"finite": False}]}]}, True),
        ({"answers": [{"turns": [{"finite": True, "base_nll": None, "base_tokens": 3}]}]}, True),
    ],
)
def test_which_records_are_not_sound(record: dict[str, Any], expected: bool) -> None:
    assert unsound.is_unsound(record) is expected


def test_an_audit_of_an_older_version_is_measured_anew(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy_of("other", lambda weights: weights[DOWN].mul_(-3))
    Path("bio.jsonl").write_text(Path("bio.jsonl").read_text().replace(json.dumps(RARE)[1:-1], "x"))
    code = audit("other", "--only", "quantise-int8")
    assert code in (0, 1)
    path = "audit/results/attacks/none/unlearned/mcq.bio.json"
    sound = Path(path).read_text()
    spoil(path)
    assert main(["report", "audit"]) == 0
    assert f"{path} holds no finite log-probability" in " ".join(capsys.readouterr().err.split())
    assert audit("other", "--only", "quantise-int8") == code
    assert json.loads(Path(path).read_text())["records"] == json.loads(sound)["records"]
    spoil("audit/results/unlearned/mcq.bio.json")
    assert audit("other", "--only", "quantise-int8") == 2
    assert "audit/results/unlearned/mcq.bio.json holds no finite log-probability in 24 of 24 records" in line_of(capsys)


def test_a_paired_test_of_no_number_is_in_no_map() -> None:
    base = {"model": "base", "measurement": "nll", "set": "wiki", "metric": "nll_per_token", "value": 3.0, "n": 9}
    paired = {"difference": 0.1, "stderr": 0.1, "low": 0.0, "high": 0.2, "p_value": 0.4}
    row = base | {"model": "unlearned", "headline": True}
    assert len(collateral([base, row | {"paired": paired}], ["bio"])) == 1
    for key in paired:
        for value in (None, math.nan, math.inf):
            assert collateral([base, row | {"paired": paired | {key: value}}], ["bio"]) == []


@pytest.mark.skipif(not CASES.is_dir(), reason="the given cases lie beside a checkout, in ../shared")
def test_the_given_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = ["--questions", f"q={CASES / 'questions.jsonl'}", "--formats", "cloze"]
    assert main(["evaluate", str(CASES / "nan-in-one-matrix"), *questions, "--out", str(tmp_path / "x")]) == 2
    assert "for 24 of 24 questions" in line_of(capsys)
    assert not list((tmp_path / "x").rglob("mcq*"))
    assert runs.load_results(tmp_path / "x") == []


def test_a_delta_too_large_to_compute_with_is_none(tmp_path: Path) -> None:
    """Its squares are infinite in a norm, which then gives zero for every state: finite numbers of no model."""
    save_delta(Delta({"model.layers.0.mlp.down_proj.weight": torch.full((2, 2), 1e30)}), tmp_path / "delta.safetensors")
    with pytest.raises(ValueError, match="too large to compute with; expected a sound delta"):
        load_delta(tmp_path / "delta.safetensors")
