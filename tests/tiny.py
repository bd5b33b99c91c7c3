"""Tiny random decoders of many Hugging Face families, a tiny tokenizer, and folders that hold both. No network."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

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
VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8, "projection_dim": WIDTH,
}  # fmt: skip
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
LLAMA4 = HEAD | {
    "num_local_experts": 4, "intermediate_size_mlp": INNER, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1,
    "attention_chunk_size": 64,
}  # fmt: skip


def wrapper(text: str, extra: Any = None, vision: Any = None, **settings: Any) -> dict[str, Any]:
    """A multimodal config around a tiny text model."""
    inner = COMMON | {"model_type": text, "vocab_size": 400} | (extra or {})
    return {"text_config": inner, "vision_config": VISION | (vision or {}), "image_token_id": 399, **settings}


WINDOW = {"sliding_window": 5}
GPT = {
    "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": INNER, "n_positions": 256, "initializer_range": 0.1,
    "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": HEADS, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}  # fmt: skip
ROUTED = {
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
STATE_SPACE = {
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_expand": 2, "mamba_n_groups": 2, "mamba_chunk_size": 8,
}  # fmt: skip
# Families that need no settings of their own.
PLAIN = [
    "apertus", "arcee", "biogpt", "bitnet", "bloom", "cohere", "diffllama", "doge", "ernie4_5", "falcon", "gemma",
    "glm", "glm4", "gpt_neox_japanese", "granite", "granite_swa", "helium", "hyperclovax", "jais2", "lfm2", "lfm3",
    "ministral3", "mpt", "nanochat", "nemotron", "olmo", "olmo_hybrid", "opt", "persimmon", "phi", "seed_oss",
    "smollm3", "stablelm", "starcoder2", "xglm", "xlstm", "recurrent_gemma", "rwkv", "mamba", "falcon_mamba",
    "minimax", "flex_olmo", "granitemoeshared", "fuyu", "bart", "hrm_text", "xlm", "openai-gpt",
]  # fmt: skip
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
    # the families below serve tests/test_families.py alone
    **dict.fromkeys(PLAIN, COMMON),
    "helium": COMMON | HEAD, "seed_oss": COMMON | HEAD, "vaultgemma": COMMON | HEAD | WINDOW, "hunyuan_v1_dense": COMMON | HEAD,
    "cohere2": COMMON | WINDOW, "exaone4": COMMON | WINDOW, "olmo3": COMMON | WINDOW, "ministral": COMMON | HEAD | WINDOW,
    "cwm": COMMON | HEAD | WINDOW | {"bos_token_id": 1},
    "modernbert-decoder": COMMON | {"bos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1, "local_attention": 10},
    "gemma4_unified_text": COMMON | HEAD | WINDOW | {"global_head_dim": 8, "num_global_key_value_heads": 2},
    "gemma4_text": COMMON | HEAD | WINDOW | {
        "global_head_dim": 8, "num_global_key_value_heads": 2, "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 400, "num_kv_shared_layers": 0,
    },
    "gemma3n_text": COMMON | HEAD | WINDOW | {
        "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 400, "laurel_rank": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 3, "activation_sparsity_pattern": [0.0] * LAYERS,
    },
    "bert": COMMON | {"is_decoder": True},  # without it, an encoder
    "gpt_bigcode": GPT, "gptj": GPT | {"rotary_dim": 4}, "codegen": GPT | {"rotary_dim": 4},
    "openai-gpt": GPT | {"attn_pdrop": 0.0}, "ctrl": GPT | {"dff": INNER},
    "gpt_neo": {
        "hidden_size": WIDTH, "num_layers": LAYERS, "num_heads": HEADS, "intermediate_size": INNER, "window_size": 5,
        "attention_types": [[["global", "local"], LAYERS // 2]], "max_position_embeddings": 256,
        "bos_token_id": 1, "eos_token_id": 1,
    },
    "qwen3_5_text": COMMON | HEAD | LINEAR_ATTENTION,
    # mixtures of experts
    "gpt_oss": COMMON | HEAD | WINDOW | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "jetmoe": COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "phimoe": COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": COMMON | EXPERTS,
    "afmoe": COMMON | HEAD | EXPERTS | WINDOW | {"num_dense_layers": 1, "num_shared_experts": 1},
    "dots1": COMMON | HEAD | ROUTED, "glm4_moe": COMMON | HEAD | ROUTED, "solar_open": COMMON | HEAD | ROUTED,
    "deepseek_v2": COMMON | ROUTED | LATENT, "deepseek_v3": COMMON | ROUTED | LATENT,
    "glm4_moe_lite": COMMON | ROUTED | LATENT | {"mlp_layer_types": ["dense"] + ["sparse"] * (LAYERS - 1)},
    "youtu": COMMON | LATENT,
    "ernie4_5_moe": COMMON | {
        "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 48, "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1, "moe_layer_end_index": LAYERS - 1,
    },
    "exaone_moe": COMMON | EXPERTS | WINDOW | {"num_shared_experts": 1},
    "hunyuan_v1_moe": COMMON | HEAD | {"num_experts": 4, "moe_topk": 2},
    "minimax_m2": COMMON | HEAD | {"num_local_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 4},
    "lfm2_moe": COMMON | EXPERTS | {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"] * 3},
    "longcat_flash": {
        "hidden_size": WIDTH, "ffn_hidden_size": INNER, "num_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS, "expert_ffn_hidden_size": 48, "n_routed_experts": 4, "zero_expert_num": 2, "moe_topk": 2,
        "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0,
    } | LATENT,
    "qwen3_5_moe_text": COMMON | HEAD | EXPERTS | LINEAR_ATTENTION | {"shared_expert_intermediate_size": 64},
    "dbrx": {
        "d_model": WIDTH, "n_heads": HEADS, "n_layers": LAYERS, "max_seq_len": 256,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}, "ffn_config": {
            "ffn_hidden_size": INNER, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": WIDTH
        },
    },
    # state-space blocks beside attention
    "bamba": COMMON | STATE_SPACE | {"attn_layer_indices": [1, 4]},
    "granitemoehybrid": COMMON | STATE_SPACE | {
        "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 64,
        "layer_types": ["mamba", "attention"] * 3,
    },
    "falcon_h1": COMMON | STATE_SPACE | {"mamba_d_ssm": 32, "mamba_n_heads": 4},
    "mamba2": COMMON | {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 8},
    "nemotron_h": {k: v for k, v in COMMON.items() if k != "num_hidden_layers"} | {
        "head_dim": 8, "layers_block_type": ["mamba", "mlp", "mlp", "mlp", "attention", "moe"], "ssm_state_size": 8,
        "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 2, "chunk_size": 8, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 48, "moe_shared_expert_intermediate_size": 48,
    },
    "zamba": COMMON | {
        "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4, "mamba_d_conv": 2, "mamba_expand": 2,
        "mamba_dt_rank": 4, "attention_hidden_size": 64, "attention_head_dim": 16, "n_mamba_heads": 2,
    },
    "zamba2": COMMON | {
        "mamba_d_state": 8, "n_mamba_heads": 4, "mamba_headdim": 16, "chunk_size": 8, "adapter_rank": 4, "mamba_ngroups": 2,
        "attention_hidden_size": 64, "attention_head_dim": 16, "num_mem_blocks": 1, "kv_channels": 8, "num_query_groups": 4,
        "layers_block_type": ["mamba", "hybrid"] * 3,
    },
    # multimodal: the vision tower is as deep as the text model, where it may be
    "llava": wrapper("llama"), "llava_next": wrapper("llama"), "mistral3": wrapper("mistral", spatial_merge_size=1),
    "paligemma": wrapper("gemma"), "aya_vision": wrapper("cohere2"), "gemma3": wrapper("gemma3_text", mm_tokens_per_image=4),
    "internvl": wrapper("qwen2", vision={"image_size": [16, 16], "patch_size": [8, 8]}),
    "idefics3": wrapper("llama", scale_factor=1), "smolvlm": wrapper("llama", scale_factor=1),
    "qwen2_vl": wrapper("qwen2_vl_text", MROPE, vision={"embed_dim": 16, "hidden_size": WIDTH, "depth": LAYERS, "num_heads": 2}),
    "qwen2_5_vl": wrapper(
        "qwen2_5_vl_text", MROPE, vision={"depth": LAYERS, "num_heads": 2, "out_hidden_size": WIDTH, "fullatt_block_indexes": [1]}
    ),
    "qwen3_vl": wrapper(
        "qwen3_vl_text", HEAD | MROPE,
        {"depth": LAYERS, "num_heads": 2, "out_hidden_size": WIDTH, "deepstack_visual_indexes": [1]}
    ),
    "qwen3_5": wrapper(
        "qwen3_5_text", HEAD | LINEAR_ATTENTION, {"depth": LAYERS, "num_heads": 2, "out_hidden_size": WIDTH}
    ),
    "llama4": wrapper(
        "llama4_text", LLAMA4, {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16}
    ),
    "mllama": {
        "text_config": COMMON | {"model_type": "mllama_text_model", "vocab_size": 400, "cross_attention_layers": [4],
            "bos_token_id": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        "vision_config": VISION | {
            "attention_heads": 2, "num_global_layers": 1, "intermediate_layers_indices": [1], "vision_output_dim": 32,
        },
    },
    "t5": {"d_model": WIDTH, "d_kv": 8, "d_ff": INNER, "num_layers": 2, "num_heads": HEADS},
}  # fmt: skip


# Mixtures of experts, by the tensor that a user would name: one expert of a fused parameter.
FUSED = [
    "mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_5_moe_text", "gpt_oss", "phimoe", "olmoe",
    "flex_olmo", "afmoe", "dots1", "glm4_moe", "solar_open", "deepseek_v2", "deepseek_v3", "glm4_moe_lite",
    "ernie4_5_moe", "exaone_moe", "hunyuan_v1_moe", "minimax", "minimax_m2",
]  # fmt: skip
NAMED = {
    **dict.fromkeys(FUSED, "mlp.experts.down_proj[0]"),
    **dict.fromkeys(["llama4", "llama4_text", "jamba", "lfm2_moe"], "feed_forward.experts.down_proj[0]"),
    **dict.fromkeys(["granitemoe", "granitemoeshared", "granitemoehybrid"], "block_sparse_moe.experts.down_proj[0]"),
    "jetmoe": "mlp.output_linear[0]",
    "dbrx": f"ffn.experts.mlp.w2[0:{INNER}]",
    "mamba": "mixer.out_proj",
}
FAMILIES = sorted(SETTINGS)


def tiny_config(family: str, **overrides: Any) -> Any:
    """The config of a tiny model; `family` is a Hugging Face `model_type`, `overrides` go into the config."""
    settings = {"vocab_size": len(tiny_tokenizer())} | SETTINGS[family] | overrides
    return AutoConfig.for_model(family, **settings)


def tiny_model(family: str, **overrides: Any) -> PreTrainedModel:
    """A random causal model in eval mode, the same at every call; norms and biases are random too, so that all matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = tiny_config(family, **overrides)
        auto = AutoModelForMultimodalLM if type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING else AutoModelForCausalLM
        model = auto.from_config(config, dtype=torch.float32)
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


def fill_shelf(folder: Path) -> None:
    """What the command line needs: a tiny model in `llama`, text in `bio.jsonl` and `wiki.jsonl`, `asked.jsonl`."""
    tiny_folder(folder, "llama", num_hidden_layers=4)
    for name in ("bio", "wiki"):
        rows = [{"text": text} for text in texts(6, 20, seed=len(name))]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"question": f"Which {i}?", "choices": ["the river", "the house"], "answer": i % 2} for i in range(3)]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))


def prepared(lm: Any, forget: Any, retain: Any, config: Any, topics: Any = (), method: str = "rmu") -> Any:
    """A method ready to train on these texts; see `misdirect.unlearning.methods.unlearn`."""
    from misdirect.unlearning.arithmetic import tokenized
    from misdirect.unlearning.methods import METHODS

    return METHODS[method].prepare(lm, tokenized(lm, forget, retain, config), config, topics)
