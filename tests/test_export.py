"""An exported run is the unlearned model for every other tool: plain transformers, PEFT, lm-evaluation-harness, the hub."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import misdirect as md
from misdirect import runs, storage
from misdirect.cli.main import main
from misdirect.config import EvaluateConfig, UnlearnConfig
from misdirect.data.questions import read_questions
from misdirect.evaluation.mcq import mcq
from misdirect.exporting import adapter, shards
from misdirect.exporting.settings import ExportConfig
from misdirect.model.delta import Delta, load_delta, save_delta, swapped_in
from misdirect.model.load import load_lm
from tiny import FAMILIES as tiny_families
from tiny import texts, tiny_folder, tiny_model, tiny_tokenizer

FAMILIES = {"llama": None, "gpt2": None, "mixtral": "mlp.experts.down_proj[1]", "gemma3": None, "qwen3_5": None}


def unlearned(place: Path, model: Path, **settings: Any) -> Path:
    for name, seed in (("bio", 1), ("wiki", 2)):
        (place / f"{name}.txt").write_text("\n\n".join(texts(6, 20, seed=seed)))
    config = UnlearnConfig(block=2, updates=2, batch_size=2, max_tokens=16, lr=1e-2, device="cpu", **settings)
    sources = {"bio": str(place / "bio.txt")}, {"wiki": str(place / "wiki.txt")}
    return md.unlearn(str(model), *sources, place / "run", config, allow_pickle=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a llama in five files."""
    place = tmp_path_factory.mktemp("sharded")
    (place / "llama").mkdir()
    tiny_model("llama").save_pretrained(place / "llama", max_shard_size="100KB")
    tiny_tokenizer().save_pretrained(place / "llama")
    return unlearned(place, place / "llama")


def logits(model: Any) -> Tensor:
    ids = torch.arange(20)[None]
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


def expected(run: Path, delta: Delta | None = None, **loading: Any) -> Tensor:
    lm = load_lm(storage.read_json(run / runs.CONFIG)["model"], **loading)
    with swapped_in(delta or load_delta(run / runs.DELTA), lm.model):
        return logits(lm.model)


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_transformers_gives_the_run_s_logits_bit_for_bit(family: str, tmp_path: Path) -> None:
    made = unlearned(tmp_path, tiny_folder(tmp_path, family), matrix=FAMILIES[family])
    lines = md.export(made, tmp_path / "whole")
    assert lines[-1] == "Logits equal those of the run bit for bit"
    if family != "gemma3":  # transformers' plain class for text alone drops the tower
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole")), expected(made))
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in (family, "whole"))
    if "own files" not in lines[0]:
        assert before.keys() == after.keys()
        changed = [name for name in before if not torch.equal(before[name], after[name])]
        assert len(changed) == 3 and {before[name].dtype for name in before} == {after[name].dtype for name in after}
    assert AutoTokenizer.from_pretrained(tmp_path / "whole")("a b")["input_ids"] == tiny_tokenizer()("a b")["input_ids"]


@pytest.mark.long
@pytest.mark.parametrize("family", [family for family in tiny_families if family not in FAMILIES])
def test_every_family_is_exported_bit_for_bit(family: str, tmp_path: Path) -> None:
    try:
        made = unlearned(tmp_path, tiny_folder(tmp_path, family))
    except ValueError as error:
        pytest.skip(f"not unlearned: {error}")
    assert md.export(made, tmp_path / "whole")[-1] == "Logits equal those of the run bit for bit"
    lm = load_lm(str(tmp_path / "whole"))
    assert torch.equal(logits(lm.model), expected(made))


def test_files_in_which_nothing_changes_are_links_and_heads_stay(run: Path, tmp_path: Path) -> None:
    base = Path(storage.read_json(run / runs.CONFIG)["model"])
    if os.stat(base).st_dev != os.stat(tmp_path).st_dev:
        pytest.skip("two file systems")
    lines = md.export(run, tmp_path / "whole")
    files = sorted(path.name for path in base.glob("*.safetensors"))
    linked = [name for name in files if os.path.samefile(base / name, tmp_path / "whole" / name)]
    assert 0 < len(linked) < len(files)
    assert f"{len(files) - len(linked)} of {len(files)} files of weights, {len(linked)} linked" in lines[0]
    for name in set(files) - set(linked):
        assert shards.offsets(base / name) == shards.offsets(tmp_path / "whole" / name)
    index = "model.safetensors.index.json"
    assert (base / index).read_bytes() == (tmp_path / "whole" / index).read_bytes()
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {path.name for path in base.iterdir()} | {"README.md"}  # nothing of the run but its card


def test_the_base_with_no_change_is_itself(run: Path, tmp_path: Path) -> None:
    made = shutil.copytree(run, tmp_path / "run")
    lm = load_lm(storage.read_json(run / runs.CONFIG)["model"])
    names = load_delta(run / runs.DELTA).tensors
    save_delta(Delta({name: lm.model.get_parameter(name).data for name in names}), made / runs.DELTA)
    assert md.export(made, tmp_path / "whole")[0].startswith("0 tensors changed in 0 of ")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole")), logits(lm.model))


def test_another_dtype_and_size_of_files(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "half")
    tiny_tokenizer().save_pretrained(tmp_path / "half")
    made = unlearned(tmp_path, tmp_path / "half")
    said = md.export(made, tmp_path / "same")[-1]  # trained in float32, stored in bfloat16
    delta = load_delta(made / runs.DELTA)
    own = load_lm(str(tmp_path / "half")).model
    lost = sum((v.bfloat16().float() - v).square().sum() for v in delta.tensors.values())
    whole = sum((v - own.get_parameter(n)).square().sum() for n, v in delta.tensors.items())
    assert f"takes {100 * (lost / whole).sqrt().item():.2g} % of the change" in said and "--dtype float32" in said
    half = Delta({name: value.bfloat16() for name, value in delta.tensors.items()})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "same", dtype="auto")
    assert model.dtype == torch.bfloat16 and torch.equal(logits(model), expected(made, half, dtype="bfloat16"))
    lines = md.export(made, tmp_path / "wide", ExportConfig(dtype="float32", max_shard_size="200KB"))
    assert lines[-1] == "Logits equal those of the run bit for bit"
    files = sorted((tmp_path / "wide").glob("*.safetensors"))
    assert len(files) == 2 and all(path.stat().st_size < 300_000 for path in files)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "wide", dtype="auto")
    assert model.dtype == torch.float32 and torch.equal(logits(model), expected(made))


def test_what_is_no_folder_of_safetensors_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "pickled").mkdir()
    model = tiny_model("llama")
    model.config.save_pretrained(tmp_path / "pickled")
    tiny_tokenizer().save_pretrained(tmp_path / "pickled")
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    made = unlearned(tmp_path, tmp_path / "pickled")
    lines = md.export(made, tmp_path / "whole", allow_pickle=True)
    assert "written anew" in lines[0] and lines[-1] == "Logits equal those of the run bit for bit"
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole")), expected(made, allow_pickle=True)
    )
    lm = md.LM.of(tiny_model("llama"), tiny_tokenizer(), "mine")
    held = md.unlearn(lm, {"bio": str(tmp_path / "bio.txt")}, {"wiki": str(tmp_path / "wiki.txt")}, tmp_path / "held",
                      UnlearnConfig(block=2, updates=1, batch_size=2, max_tokens=16, device="cpu"))  # fmt: skip
    md.export(held, tmp_path / "from-memory")
    with swapped_in(load_delta(held / runs.DELTA), lm.model):
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "from-memory")), logits(lm.model))


# ------------------------------------------------------------------------------------------------ an adapter


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_the_rank_is_the_smallest_that_keeps_the_share(shape: tuple[int, int]) -> None:
    change = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    energy = torch.linalg.svdvals(change).square()
    for keep in (0.3, 0.9, 0.99):
        made = adapter.factors(change, keep)
        rank = made.a.shape[0]
        assert energy[:rank].sum() / energy.sum() >= keep > energy[: rank - 1].sum() / energy.sum()
        left = (change - made.b @ made.a).square().sum()
        assert left.item() == pytest.approx(energy[rank:].sum().item())  # no matrix of that rank comes closer
    thin = torch.randn(shape[0], 3, dtype=torch.float64) @ torch.randn(3, shape[1], dtype=torch.float64)
    exact = adapter.factors(thin, 1.0)
    assert exact.a.shape[0] == exact.full == 3
    assert torch.allclose(exact.b @ exact.a, thin)
    assert adapter.factors(torch.zeros(shape), 0.9).a.shape == (1, shape[1])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_peft_switches_the_change_on_and_off(family: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install 'misdirect[lora]'")
    made = unlearned(tmp_path, tiny_folder(tmp_path, family))
    said = md.export(made, tmp_path / "all", ExportConfig(format="adapter", keep=1.0))
    assert said[0].endswith("all of it") and said[1].startswith("bio: NLL per token")
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / family), tmp_path / "all")
    unchanged = logits(load_lm(str(tmp_path / family)).model)
    assert torch.allclose(logits(model), expected(made), atol=1e-5)
    with model.disable_adapter():
        assert torch.equal(logits(model), unchanged)
    md.export(made, tmp_path / "less", ExportConfig(format="adapter", keep=0.5))
    less = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / family), tmp_path / "less")
    lm = load_lm(str(tmp_path / family))
    merged = adapter.put_back(lm, adapter.of_delta(lm, load_delta(made / runs.DELTA), 0.5, lambda n: None))
    assert torch.allclose(logits(less), expected(made, merged), atol=1e-5)


def test_an_adapter_says_how_far_it_is_from_the_change(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": f"{t}?", "choices": t.split()[:4], "answer": i % 4} for i, t in enumerate(texts(8, 12))]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["--questions", f"bio={tmp_path / 'q.jsonl'}"]
    out = tmp_path / "adapter"
    assert main(["export", str(run), "--out", str(out), "--format", "adapter", "--keep", "0.6", *asked]) == 0
    said = capsys.readouterr().out
    lm, delta = load_lm(storage.read_json(run / runs.CONFIG)["model"]), load_delta(run / runs.DELTA)
    found = []
    for one in (delta, adapter.put_back(lm, adapter.of_delta(lm, delta, 0.6, lambda n: None))):
        with swapped_in(one, lm.model):
            records = mcq(lm, "bio", read_questions(str(tmp_path / "q.jsonl")), EvaluateConfig(formats="cloze")).records
        found.append(torch.tensor([x for record in records for x in record["cloze_logprobs"]]))
    off = (found[0] - found[1]).abs().mean().item()
    assert f"by the adapter (n = 8), log-probabilities of the choices {off:.2g} nats apart on average" in said
    assert {path.name for path in out.iterdir()} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert "peft" in (out / "README.md").read_text()


def test_an_expert_s_change_is_no_lora(tmp_path: Path) -> None:
    made = unlearned(tmp_path, tiny_folder(tmp_path, "mixtral"), matrix=FAMILIES["mixtral"])
    with pytest.raises(ValueError, match=r"is not the whole weight of a linear layer, .* expected --format full"):
        md.export(made, tmp_path / "adapter", ExportConfig(format="adapter"))
    assert {path.name for path in tmp_path.iterdir()} == {"run", "mixtral", "bio.txt", "wiki.txt"}


# ------------------------------------------------------------------------------------------------ all or nothing


def test_the_change_alone_is_what_may_be_published(run: Path, tmp_path: Path) -> None:
    made = shutil.copytree(run, tmp_path / "run")
    runs.write_summary(made, [])
    md.export(made, tmp_path / "public", ExportConfig(format="delta"))
    assert {path.name for path in (tmp_path / "public").iterdir()} == {"README.md", "delta.safetensors", "summary.json"}
    assert (tmp_path / "public" / runs.DELTA).read_bytes() == (run / runs.DELTA).read_bytes()


@pytest.mark.parametrize("part", ["copy", "proof", "full"])
def test_a_failure_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    def full(*args: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "no space")

    if part == "copy":
        monkeypatch.setattr(shards.shutil, "copyfile", full)
    elif part == "proof":
        monkeypatch.setattr(shards, "as_bytes", lambda value: bytes(value.nbytes))
    else:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 10))  # type: ignore[attr-defined]
    message = {"copy": "does not fit on the disk", "proof": "states are off by", "full": "the export takes"}[part]
    with pytest.raises(ValueError, match=message):
        md.export(run, tmp_path / "whole")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_cleared(run: Path, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from misdirect.exporting import shards; import misdirect as md;"
        "shards.copy_beside = lambda *a: os.kill(os.getpid(), signal.SIGKILL); md.export(sys.argv[1], sys.argv[2])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(run), str(tmp_path / "whole")], capture_output=True, check=False
    )
    assert done.returncode == -9
    assert not (tmp_path / "whole").exists()
    (tmp_path / ".whole.part" / "stray").mkdir()
    md.export(run, tmp_path / "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole")), expected(run))


def test_bad_input_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: str, what: str = "export") -> str:
        assert main([what, *words]) == 2
        return capsys.readouterr().err

    out = ["--out", str(tmp_path / "out")]
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").touch()
    assert "is there already; expected a new folder" in refused(str(run), "--out", str(tmp_path / "there"))
    assert "'many' is not a size; expected one such as 5GB" in refused(str(run), *out, "--max-shard-size", "many")
    assert "--keep 2.0 is not a share" in refused(str(run), *out, "--keep", "2")
    assert "is not a name on the hub; expected OWNER/NAME" in refused(str(run), *out, "--push", "name")
    assert "is not a run" in refused(str(tmp_path), *out)
    other = tiny_folder(tmp_path / "other", "llama")
    changed = load_file(other / "model.safetensors")
    save_file({name: value + 1 for name, value in changed.items()}, other / "model.safetensors", {"format": "pt"})
    assert "has other weights than" in refused(str(run), *out, "--model", str(other))
    assert "holds no config.json" in refused(str(run), *out, "--model", str(tmp_path / "there"))
    unlearn = ["m", "--forget", "a=b.txt", "--retain", "c=d.txt", "--out", str(tmp_path / "run")]
    assert "expected a new folder for --export" in refused(
        *unlearn, "--export", str(tmp_path / "there"), what="unlearn"
    )
    assert not (tmp_path / "out").exists() and not (tmp_path / "run").exists()


def test_unlearn_and_export_in_one_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_folder(tmp_path, "llama")
    for name, seed in (("bio", 1), ("wiki", 2)):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(texts(6, 20, seed=seed)))
    sources = ["--forget", f"bio={tmp_path / 'bio.txt'}", "--retain", f"wiki={tmp_path / 'wiki.txt'}"]
    out = ["--out", str(tmp_path / "run"), "--export", str(tmp_path / "whole")]
    assert main(["unlearn", str(model), *sources, "--block", "2", "--updates", "1", *out]) == 0
    assert f"The model: {tmp_path / 'whole'}" in capsys.readouterr().out
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole")), expected(tmp_path / "run"))


# ------------------------------------------------------------------------------------------------ the hub


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's HTTP as an upload of small files takes; what it was sent stands in `seen`."""

    seen: ClassVar[list[tuple[str, Any]]] = []
    public = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        lines = [json.loads(line) for line in body.splitlines() if line.strip().startswith(b"{")]
        Hub.seen.append((self.path, lines[0] if len(lines) == 1 else lines))
        if self.path.endswith("/preupload/main"):
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in lines[0]["files"]]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            self.answer({"success": True, "commitUrl": "http://127.0.0.1/me/mine/commit/1", "commitOid": "1" * 40})
        else:
            self.answer({"url": "http://127.0.0.1/me/mine"})

    def do_GET(self) -> None:
        self.answer({"id": "me/mine", "private": not Hub.public, "sha": "1" * 40, "siblings": []})

    def answer(self, data: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(data).encode())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.seen.clear()
    Hub.public = False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def pushed(run: Path, out: Path, hub: str, *more: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"HF_ENDPOINT": hub, "HF_TOKEN": "hf_none", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    command = [
        sys.executable,
        "-m",
        "misdirect",
        "export",
        str(run),
        "--out",
        str(out),
        "--format",
        "delta",
        "--push",
        "me/mine",
    ]
    return subprocess.run([*command, *more], env=env, capture_output=True, text=True, check=False)


def test_a_push_is_private_and_holds_what_the_folder_holds(run: Path, tmp_path: Path, hub: str) -> None:
    done = pushed(run, tmp_path / "public", hub)
    assert done.returncode == 0, done.stderr
    assert "me/mine (private)" in done.stdout
    made = next(data for path, data in Hub.seen if path.endswith("/repos/create"))
    assert (made["visibility"], made["name"]) == ("private", "mine")
    sent = next(data for path, data in Hub.seen if "/commit/" in path)
    files = {line["value"]["path"] for line in sent if line["key"] == "file"}
    assert files == {path.name for path in (tmp_path / "public").iterdir()} == {"README.md", "delta.safetensors"}


def test_a_repository_that_is_public_already_is_not_pushed_to_unasked(run: Path, tmp_path: Path, hub: str) -> None:
    Hub.public = True
    done = pushed(run, tmp_path / "public", hub)
    assert done.returncode == 2 and "there already and public; expected --public" in done.stderr
    assert (tmp_path / "public").is_dir()  # what was computed is kept
    assert not any("/commit/" in path for path, _ in Hub.seen)


# ------------------------------------------------------------------------------------------------ the real model


@pytest.mark.real
@pytest.mark.filterwarnings("default")
def test_the_harness_as_typed_gives_our_numbers(tmp_path: Path) -> None:
    """Three updates on the real model, exported; `lm_eval --model hf` asks the same questions of the folder."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is absent: pip install 'misdirect[eval]'")
    config = UnlearnConfig(recipe="demo", updates=3, device="cpu")
    made = md.unlearn("demo", {"biology": "demo-forget"}, {"wiki": "demo-retain-wikipedia"}, tmp_path / "run", config)
    md.export(made, tmp_path / "whole")
    asked = read_questions("demo-biology-dev")[:12]
    rows = [{"question": q.question, "choices": list(q.choices), "answer": q.answer} for q in asked]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    task = {
        "task": "cloze", "output_type": "multiple_choice", "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices", "doc_to_target": "answer", "dataset_path": "json", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.json")}, "cache_dir": str(tmp_path / "cache")},
    }  # fmt: skip
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "cloze.yaml").write_text(json.dumps(task))  # JSON is YAML
    words = ["--model", "hf", "--model_args", f"pretrained={tmp_path / 'whole'},dtype=float32", "--tasks", "cloze",
             "--include_path", str(tmp_path / "tasks"), "--device", "cpu", "--batch_size", "4", "--log_samples",
             "--output_path", str(tmp_path / "theirs")]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "lm_eval", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    samples = [
        json.loads(line) for line in next((tmp_path / "theirs").rglob("samples_*.jsonl")).read_text().splitlines()
    ]
    theirs = [
        [float(found[0]) for found in each["filtered_resps"]] for each in sorted(samples, key=lambda s: s["doc_id"])
    ]
    lm = load_lm("demo", device="cpu", dtype="float32")
    with swapped_in(load_delta(made / runs.DELTA), lm.model):
        ours = mcq(lm, "cloze", asked, EvaluateConfig(formats="cloze")).records
    lengths = [n for record in ours for n in record["num_tokens"]]
    found = [abs(a - b) for r, t in zip(ours, theirs, strict=True) for a, b in zip(r["cloze_logprobs"], t, strict=True)]
    assert max(d / n for d, n in zip(found, lengths, strict=True)) < 1e-4
