"""Tiny random decoders of many Hugging Face families, a tiny tokenizer, and folders that hold both. No network."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

WIDTH, INNER, HEADS, LAYERS = 32, 80, 4, 6
VOCABULARY = (
    "the of a in to and is was for on with by virus cell protein gene toxin spread host river house market law king war "
    "trade music light field force energy atom number line water stone bread north south winter morning answer question"
)

COMMON = {
    "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "initializer_range": 0.1,
    "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
HEAD = {"head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LINEAR_ATTENTION = {
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": COMMON,
    "mistral": COMMON | {"sliding_window": 5},
    "qwen2": COMMON,
    "qwen3": COMMON | HEAD,
    "gemma2": COMMON | HEAD | {"sliding_window": 5, "query_pre_attn_scalar": 8},
    "gemma3_text": COMMON | HEAD | {"sliding_window": 5, "query_pre_attn_scalar": 8},
    "phi3": COMMON,
    "olmo2": COMMON,
    "gpt2": {
        "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": INNER, "n_positions": 1024,
        "initializer_range": 0.1, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
    "gpt_neox": COMMON | {"rotary_pct": 0.5},
    "mixtral": COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": COMMON | HEAD | EXPERTS,
    "qwen2_moe": COMMON | EXPERTS | {"shared_expert_intermediate_size": 64},
    "qwen3_next": COMMON | HEAD | EXPERTS | LINEAR_ATTENTION | {"shared_expert_intermediate_size": 64},
    "llama4_text": COMMON | HEAD | {
        "num_local_experts": 4, "intermediate_size_mlp": INNER, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1,
        "attention_chunk_size": 64,
    },
    "jamba": COMMON | {
        "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 1,
        "expert_layer_offset": 0, "mamba_d_state": 4, "mamba_d_conv": 2, "mamba_expand": 2, "mamba_dt_rank": 4,
    },
    "minicpm3": COMMON | {
        "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
        "v_head_dim": 8, "scale_depth": 1.4, "scale_emb": 12, "dim_model_base": 16,
    },
}  # fmt: skip


def tiny_config(family: str, **overrides: Any) -> Any:
    """The config of a tiny model; `family` is a Hugging Face `model_type`, `overrides` go into the config."""
    settings = {"vocab_size": len(tiny_tokenizer())} | SETTINGS[family] | overrides
    return AutoConfig.for_model(family, **settings)


def tiny_model(family: str, **overrides: Any) -> PreTrainedModel:
    """A random causal model in eval mode, the same at every call; norms and biases are random too, so that all matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny_config(family, **overrides), dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return model.eval()


@functools.cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of about 380 entries, any text can be encoded; `<pad>` is 0, `<eos>` is 1, and there is no BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(200, 30, seed=0), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def tiny_folder(tmp_path: Path, family: str = "llama", **overrides: Any) -> Path:
    """A tiny random model in safetensors and its tokenizer, saved under `tmp_path / family`; returns that folder."""
    folder = tmp_path / family
    tiny_model(family, **overrides).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def texts(count: int, longest: int, seed: int = 0, shortest: int = 4) -> list[str]:
    """`count` texts of `shortest` to `longest` words; their lengths differ, so that batches are padded."""
    draw = random.Random(seed)
    words = VOCABULARY.split()
    return [" ".join(draw.choices(words, k=draw.randint(shortest, longest))) for _ in range(count)]
