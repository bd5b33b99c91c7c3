"""Folders as people have them: what the files lack, what they hold too much, how they are named, and encoders.

The oracle is transformers alone on the sound folder: what is loaded gives its logits, and everything else is refused by name.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaForSequenceClassification

from misdirect.cli.main import main
from misdirect.model import stored
from misdirect.model.identity import weights_hash
from misdirect.model.lm import LM
from misdirect.model.load import load_lm
from tiny import COMMON, fill_shelf, tiny_folder, tiny_tokenizer

Tensors = dict[str, Tensor]
LAST = 1
CASES = Path(__file__).parents[2] / "shared" / "cases"
IDS = torch.tensor([[5, 60, 200, 33, 7, 120]])
HEAD, NORM, EMBED = "lm_head.weight", "model.norm.weight", "model.embed_tokens.weight"


@pytest.fixture(autouse=True)
def _notes_are_said_again() -> None:
    stored.note_once.cache_clear()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("sound"), "llama", num_hidden_layers=4)


def changed(folder: Path, to: Path, edit: Callable[[Tensors], Tensors], **config: Any) -> Path:
    """A copy of a folder with other tensors, and other fields in its config."""
    copy = Path(shutil.copytree(folder, to / "copy"))
    tensors = {name: value.clone() for name, value in load_file(copy / "model.safetensors").items()}
    save_file(edit(tensors), copy / "model.safetensors", {"format": "pt"})
    configure(copy, **config)
    return copy


def configure(folder: Path, **config: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {n: v for n, v in tensors.items() if n not in names}


def beside(**more: Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {n.replace("__", "."): v for n, v in more.items()}


def plainly(folder: Path) -> Tensor:
    """The logits by transformers alone."""
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=IDS, use_cache=False).logits


def of(lm: LM) -> Tensor:
    with torch.no_grad():
        return lm.model(input_ids=IDS, use_cache=False).logits


def state(lm: LM) -> Tensor:
    """The residual stream after block LAST."""
    kept: list[Tensor] = []
    handle = lm.blocks[LAST].register_forward_hook(lambda m, a, out: kept.append(out))
    with torch.no_grad():
        lm.model(input_ids=IDS, use_cache=False)
    handle.remove()
    return kept[0]


def refused(folder: Path, last: int | None = None, **options: Any) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        load_lm(str(folder), last, device="cpu", **options)
    text = str(error.value)
    assert "\n" not in text and len(text) < 700, text
    return text


# What the files lack


@pytest.mark.parametrize("name", [HEAD, NORM, EMBED, "model.layers.3.mlp.up_proj.weight"])
def test_what_the_files_lack_is_refused_by_name(name: str, sound: Path, tmp_path: Path) -> None:
    assert f"lacks 1 tensor of its model: {name};" in refused(changed(sound, tmp_path, without(name)))


@pytest.mark.parametrize(
    ("lacking", "fits"),
    [
        ([HEAD], True),
        ([HEAD, NORM, "model.layers.3.mlp.up_proj.weight"], True),
        ([EMBED], False),
        ([f"model.layers.{LAST}.input_layernorm.weight"], False),
    ],
)
def test_unlearning_needs_what_it_reads(lacking: list[str], fits: bool, sound: Path, tmp_path: Path) -> None:
    copy = changed(sound, tmp_path, without(*lacking))
    if not fits:
        assert lacking[0].removeprefix("model.") in refused(copy, LAST)
        return
    ours, theirs = load_lm(str(copy), LAST, device="cpu"), load_lm(str(sound), LAST, device="cpu")
    assert torch.equal(state(ours), state(theirs))
    torch.manual_seed(7)
    assert weights_hash(load_lm(str(copy), LAST, device="cpu")) == weights_hash(ours)


def test_a_tie_that_the_config_has_lost_is_named(tmp_path: Path) -> None:
    folder = configure(
        tiny_folder(tmp_path, "llama", num_hidden_layers=2, tie_word_embeddings=True), tie_word_embeddings=False
    )
    assert "set tie_word_embeddings to true in config.json" in refused(folder)
    configure(folder, tie_word_embeddings=True)
    assert torch.equal(of(load_lm(str(folder), device="cpu")), plainly(folder))


def test_a_folder_of_another_class_has_no_head(sound: Path, tmp_path: Path) -> None:
    for kind in (AutoModel, LlamaForSequenceClassification):
        folder = Path(shutil.copytree(sound, tmp_path / kind.__name__))
        kind.from_pretrained(sound).save_pretrained(folder)
        assert HEAD in refused(folder) and "it was saved as Llama" in refused(folder)
        assert torch.equal(
            state(load_lm(str(folder), LAST, device="cpu")), state(load_lm(str(sound), LAST, device="cpu"))
        )


def test_a_headless_folder_whose_head_is_its_embedding_is_whole(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, "gpt2")
    expected = plainly(folder)
    AutoModel.from_pretrained(folder).save_pretrained(folder)
    assert torch.equal(of(load_lm(str(folder), device="cpu")), expected)


def test_what_no_text_reaches_may_be_missing_and_is_the_same_at_every_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_folder(tmp_path, "llava")
    expected = of(load_lm(str(folder), device="cpu"))
    copy = changed(folder, tmp_path, lambda t: {n: v for n, v in t.items() if "vision" not in n})
    loads = []
    for seed in range(2):
        torch.manual_seed(seed)
        loads.append(load_lm(str(copy), device="cpu"))
    assert torch.equal(of(loads[0]), expected)
    assert weights_hash(loads[0]) == weights_hash(loads[1])
    assert "which a text does not reach" in capsys.readouterr().err


def test_an_expert_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, "mixtral")
    name = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    assert f"lack {name} that transformers stacks" in refused(changed(folder, tmp_path / "a", without(name)), 2)
    whole = [f"model.layers.1.block_sparse_moe.experts.2.w{i}.weight" for i in (1, 2, 3)]
    assert "(3, 32, 80) in its files and (4, 32, 80)" in refused(changed(folder, tmp_path / "b", without(*whole)))
    ups = [f"model.layers.1.block_sparse_moe.experts.{e}.w3.weight" for e in range(4)]
    assert "lack matrices that transformers stacks with others" in refused(
        changed(folder, tmp_path / "c", without(*ups))
    )


def test_a_buffer_that_routes_is_a_tensor_like_any_other(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, "deepseek_v3")
    copy = changed(folder, tmp_path, lambda t: {n: v for n, v in t.items() if "e_score" not in n})
    assert "gate.e_score_correction_bias" in refused(copy, 2)


def test_another_shape_is_named(sound: Path, tmp_path: Path) -> None:
    assert "vocab_size" not in refused(changed(sound, tmp_path / "a", lambda t: t | {HEAD: torch.ones(7, 32)}))
    text = refused(changed(sound, tmp_path / "b", lambda t: t | {HEAD: torch.ones(7, 32)}))
    assert f"{HEAD} is (7, 32) in its files" in text


# What the files hold too much


BIAS = "model.layers.3.self_attn.q_proj.bias"


@pytest.mark.parametrize("last", [None, LAST])
@pytest.mark.parametrize(
    ("edit", "config", "says"),
    [
        (beside(model__layers__3__self_attn__q_proj__bias=torch.ones(32)), {}, f"{BIAS}; expected a config.json that has"),
        (beside(lm_head__bias=torch.ones(380)), {}, "lm_head.bias"),
        (
            beside(model__layers__0__mlp__up_proj__weight_scale_inv=torch.ones(1, 1)),
            {},
            "expected quantization_config in config.json",
        ),
        (
            beside(model__layers__0__mlp__up_proj__lora_A__default__weight=torch.ones(2, 32)),
            {},
            "adapter that is not merged",
        ),
        (lambda t: {n.replace("q_proj.", "q_proj.base_layer."): v for n, v in t.items()}, {}, "adapter that is not merged"),
        (
            lambda t: {n: v.to(torch.float8_e4m3fn) if "mlp" in n else v for n, v in t.items()},
            {},
            "as F8_E4M3, quantized, and config.json has no quantization_config",
        ),
        (dict, {"num_hidden_layers": 3}, "model.layers.3.input_layernorm.weight"),
        (beside(model__layers__0__self_attn__q_norm__weight=torch.ones(8)), {}, "q_norm"),
    ],
    ids=["bias", "head bias", "scale", "lora", "base_layer", "fp8", "a block too many", "another architecture's norm"],
)  # fmt: skip
def test_what_the_class_would_drop_is_refused_by_name(
    edit: Callable[[Tensors], Tensors],
    config: Mapping[str, Any],
    says: str,
    last: int | None,
    sound: Path,
    tmp_path: Path,
) -> None:
    assert says in refused(changed(sound, tmp_path, edit, **config), last)


@pytest.mark.parametrize("last", [None, LAST])
@pytest.mark.parametrize(
    "edit",
    [
        beside(model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4)),
        beside(model__rotary_emb__cos_cached=torch.ones(9, 8)),
        beside(model__layers__0__self_attn__bias=torch.ones(1, 1, 9, 9)),
        beside(v_head__summary__weight=torch.ones(1, 32), v_head__summary__bias=torch.ones(1)),
        beside(score__weight=torch.ones(2, 32)),
        beside(mtp__layers__0__norm__weight=torch.ones(32)),
    ],
    ids=["inv_freq", "cos", "mask", "value head", "score", "mtp"],
)
def test_what_changes_no_logit_is_no_reason(
    edit: Callable[[Tensors], Tensors], last: int | None, sound: Path, tmp_path: Path
) -> None:
    lm = load_lm(str(changed(sound, tmp_path, edit)), last, device="cpu")
    if last is None:
        assert torch.equal(of(lm), plainly(sound))
    else:
        assert torch.equal(state(lm), state(load_lm(str(sound), last, device="cpu")))


def test_a_bias_named_as_a_mask_is_none(sound: Path, tmp_path: Path) -> None:
    assert "self_attn.bias" in refused(
        changed(sound, tmp_path, beside(model__layers__0__self_attn__bias=torch.ones(32)))
    )


def test_a_block_for_further_tokens_is_known_by_the_config(tmp_path: Path) -> None:
    def ahead(tensors: Tensors) -> Tensors:
        return tensors | {
            n.replace("layers.5.", "layers.6."): v.clone() for n, v in tensors.items() if "layers.5." in n
        }

    folder = tiny_folder(tmp_path, "deepseek_v3")
    expected = plainly(folder)
    copy = changed(folder, tmp_path, ahead, num_nextn_predict_layers=1)
    assert torch.equal(of(load_lm(str(copy), device="cpu")), expected)
    load_lm(str(copy), 2, device="cpu")
    assert "model.layers.6." in refused(configure(copy, num_nextn_predict_layers=0), 2)


# How the tensors are named


@pytest.mark.parametrize(
    "rename",
    [
        lambda n: f"_orig_mod.{n}",
        lambda n: f"module.{n}",
        lambda n: f"module._orig_mod.{n}",
        lambda n: f"_orig_mod.module.{n}",
        lambda n: f"base_model.model.{n}",
        lambda n: f"_fsdp_wrapped_module.{n}".replace("layers.1.", "layers.1._fsdp_wrapped_module."),
        lambda n: n.replace("layers.2.", "layers.2._orig_mod."),
    ],
    ids=["compiled", "ddp", "ddp compiled", "compiled ddp", "peft", "fsdp", "one block compiled"],
)
def test_what_a_wrapper_puts_before_names_is_taken_off(
    rename: Callable[[str], str], sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = changed(sound, tmp_path, lambda t: {rename(n): v for n, v in t.items()})
    assert torch.equal(of(load_lm(str(copy), device="cpu")), plainly(sound))
    assert torch.equal(state(load_lm(str(copy), LAST, device="cpu")), state(load_lm(str(sound), LAST, device="cpu")))
    assert "in the tensors' names is taken off" in capsys.readouterr().err


def test_experts_under_a_prefix_are_the_same_experts(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, "mixtral")
    copy = changed(folder, tmp_path, lambda t: {f"module.{n}": v for n, v in t.items()})
    assert torch.equal(of(load_lm(str(copy), device="cpu")), plainly(folder))


@pytest.mark.parametrize("last", [None, LAST])
def test_a_prefix_of_no_known_wrapper_is_named(last: int | None, sound: Path, tmp_path: Path) -> None:
    copy = changed(sound, tmp_path, lambda t: {f"student.net.{n}": v for n, v in t.items()})
    assert "begin with student.net., such as student.net.lm_head.weight; expected lm_head.weight" in refused(copy, last)


def test_a_prefix_on_some_names_alone_is_not_taken_off(sound: Path, tmp_path: Path) -> None:
    copy = changed(sound, tmp_path, lambda t: {f"module.{n}" if "mlp" in n else n: v for n, v in t.items()})
    assert "begin with module." in refused(copy)
    both = changed(sound, tmp_path / "both", lambda t: t | {f"_orig_mod.{n}": v + 1 for n, v in t.items()})
    assert "some tensors twice, with _orig_mod. in the name and without" in refused(both)


# Which files are read


def sharded(folder: Path, to: Path) -> Path:
    copy = Path(shutil.copytree(folder, to / "shards"))
    (copy / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(copy, max_shard_size="40KB")
    assert len(list(copy.glob("model-*.safetensors"))) > 1
    return copy


@pytest.mark.parametrize("metadata", ["missing", None, "text"])
def test_an_index_without_metadata_is_an_index(metadata: Any, sound: Path, tmp_path: Path) -> None:
    folder = sharded(sound, tmp_path)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    path.write_text(
        json.dumps(index | {"metadata": metadata} if metadata != "missing" else {"weight_map": index["weight_map"]})
    )
    before = path.read_bytes()
    lm = load_lm(str(folder), device="cpu")
    assert torch.equal(of(lm), plainly(sound)) and lm.model.config.name_or_path == str(folder)
    assert torch.equal(state(load_lm(str(folder), LAST, device="cpu")), state(lm))
    assert path.read_bytes() == before


def test_of_two_checkpoints_in_a_folder_it_is_said_which_is_read(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sharded(sound, tmp_path)
    old = changed(sound, tmp_path, lambda t: {n: 2 * v for n, v in t.items()})
    (folder / "model.safetensors").write_bytes((old / "model.safetensors").read_bytes())
    lm = load_lm(str(folder), device="cpu")
    said = capsys.readouterr().err
    assert torch.equal(of(lm), plainly(old))
    assert f"{folder}: model.safetensors is read; model-00001-of-" in said and "more beside it is not" in said


@pytest.mark.parametrize(
    "name", ["model-00009-of-00009.safetensors", "consolidated.safetensors", "model.fp16.safetensors"]
)
def test_weights_that_the_index_does_not_name_are_said(
    name: str, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sharded(sound, tmp_path)
    (folder / name).write_bytes(b"not read, so not looked at")
    assert torch.equal(of(load_lm(str(folder), device="cpu")), plainly(sound))
    assert f"model.safetensors.index.json is read; {name} beside it is not" in capsys.readouterr().err


def test_a_sound_folder_says_nothing(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_lm(str(sound), device="cpu")
    assert capsys.readouterr().err == ""


def test_weights_under_a_name_that_is_not_read_are_refused(sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "variant"))
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    assert "holds model.fp16.safetensors but no model.safetensors" in refused(folder)
    shards = sharded(sound, tmp_path)
    (shards / "model.safetensors.index.json").unlink()
    assert "expected model.safetensors.index.json beside them" in refused(shards)


def test_two_shards_with_one_tensor_must_agree(sound: Path, tmp_path: Path) -> None:
    folder = sharded(sound, tmp_path)
    first, second = sorted(folder.glob("model-*.safetensors"))[:2]
    tensors, name = load_file(second), next(iter(load_file(first)))
    save_file(tensors | {name: load_file(first)[name].clone()}, second, {"format": "pt"})
    assert torch.equal(of(load_lm(str(folder), device="cpu")), plainly(sound))
    save_file(tensors | {name: load_file(first)[name] + 1}, second, {"format": "pt"})
    assert f"{name} is in {first.name} and, with other numbers, in {second.name}" in refused(folder)


def test_pickles_are_held_to_the_same(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "pickle"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({f"module.{n}": v for n, v in tensors.items()}, folder / "pytorch_model.bin")
    assert "--allow-pickle" in refused(folder)
    assert torch.equal(of(load_lm(str(folder), device="cpu", allow_pickle=True)), plainly(sound))
    torch.save(without(HEAD)(tensors), folder / "pytorch_model.bin")
    assert HEAD in refused(folder, allow_pickle=True)
    (folder / "pytorch_model.bin").write_bytes(b"nothing")
    assert "pytorch_model.bin is not a checkpoint" in refused(folder, allow_pickle=True)


# Encoders

TINY = {k: v for k, v in COMMON.items() if k != "bos_token_id"} | {"num_hidden_layers": 2, "vocab_size": 400}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": TINY, "roberta": TINY, "electra": TINY, "rembert": TINY, "bert-generation": TINY,
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 80, "vocab_size": 400},
}  # fmt: skip


@pytest.mark.parametrize("family", ENCODERS)
def test_a_model_that_reads_the_tokens_after_is_refused(family: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **ENCODERS[family])).eval()
    with torch.no_grad():  # the oracle: the first token's logits change with the last
        a, b = (model(input_ids=torch.tensor([[5, 6, 7, last]])).logits[0, 0] for last in (8, 9))
    assert not torch.allclose(a, b, atol=1e-5)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    for last in (None, 0):
        text = refused(tmp_path, last)
        assert "is an encoder" in text or "is not a decoder" in text


def test_a_bert_that_was_made_a_decoder_is_one(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, "bert")
    assert torch.equal(of(load_lm(str(folder), device="cpu")), plainly(folder))


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "mixtral", "gemma2", "jamba"])
def test_decoders_are_decoders_in_half_precision_too(family: str, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, family)
    for dtype in ("float32", "bfloat16"):
        load_lm(str(folder), device="cpu", dtype=dtype)


# Every verb


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fill_shelf(tmp_path)
    changed(tmp_path / "llama", tmp_path, without(HEAD))
    (tmp_path / "copy").rename(tmp_path / "headless")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [
        "evaluate headless --questions q=asked.jsonl --out out",
        "evaluate headless --text t=wiki.jsonl --out out",
        "audit llama headless --questions bio=asked.jsonl --out out",
        "audit headless llama --questions bio=asked.jsonl --out out",
        "unlearn headless --method npo --forget bio=bio.jsonl --retain wiki=wiki.jsonl --block 1 --updates 1 --out out",
    ],
)
def test_every_verb_that_needs_the_head_says_so_before_it_asks(
    line: str, shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    said = capsys.readouterr().err
    assert "headless lacks 1 tensor of its model: lm_head.weight" in said and "Traceback" not in said
    assert not list(shelf.glob("out/results/**/*.json"))


def test_a_headless_folder_can_be_unlearned_and_then_needs_its_head(
    shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "--forget bio=bio.jsonl --retain wiki=wiki.jsonl --block 1 --updates 2 --out"
    for model in ("llama", "headless"):
        assert main(["unlearn", model, *command.split(), model + "-run"]) == 0
    ours, theirs = (load_file(shelf / f"{model}-run" / "delta.safetensors") for model in ("headless", "llama"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    capsys.readouterr()
    for line in (
        "evaluate headless-run --questions q=asked.jsonl",
        "audit headless-run --questions bio=asked.jsonl",
        "attack quantise-int4 headless-run --questions bio=asked.jsonl",
        "chat headless-run",
    ):
        assert main(line.split()) == 2, line
        assert "lm_head.weight" in capsys.readouterr().err, line


# The handed cases


@pytest.mark.skipif(not CASES.is_dir(), reason="the handed cases are not beside this checkout")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("sound", ""),
        ("index-without-metadata", ""),
        ("compiled-prefix", ""),
        ("headless", HEAD),
        ("biases-that-the-config-denies", "model.layers.0.self_attn.k_proj.bias"),
    ],
)
def test_the_handed_cases(name: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    questions = f"q={CASES / 'questions.jsonl'}"
    line = ["evaluate", str(CASES / name), "--questions", questions, "--formats", "cloze", "--out", str(out)]
    if says:
        assert main(line) == 2
        assert says in capsys.readouterr().err
        return
    assert main(line) == 0
    (result,) = out.glob("results/base/*.json")
    rows = {row["id"]: row["cloze_logprobs"] for row in json.loads(result.read_text())["records"]}
    expected: Mapping[str, list[float]] = json.loads((CASES / "expected.json").read_text())["sound"]
    for item, values in expected.items():
        assert rows[item] == pytest.approx(values, abs=1e-3)


def test_a_pickle_of_tensors_one_level_down_says_so(sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "copy"))
    torch.save({"state_dict": load_file(folder / "model.safetensors"), "step": 3}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "keeps its tensors under 'state_dict'; expected them at the top" in refused(folder, allow_pickle=True)


def test_a_pointer_in_place_of_weights_says_what_fetches_them(sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "copy"))
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "`git lfs pull`" in refused(folder)


def test_a_model_that_reads_nothing_any_more_is_refused(sound: Path, tmp_path: Path) -> None:
    """Its numbers are finite: a norm makes zero of a value whose square is infinite."""
    name = "model.layers.1.mlp.down_proj.weight"
    huge = changed(sound, tmp_path, lambda tensors: tensors | {name: tensors[name] * 1e30})
    assert plainly(huge).isfinite().all()
    assert "gives the same logits whatever it reads" in refused(huge)
