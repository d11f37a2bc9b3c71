"""Tiny random models of every family whose head differs."""

import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pipeline.models.loading import capping

FAMILIES = {
    "qwen2-tied": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen2-untied": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": False}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
    "llama-tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
    "llama-untied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": False}),
    "mistral-sliding": (MistralConfig, MistralForCausalLM, {"sliding_window": 5}),
    "gemma2-softcap": (Gemma2Config, Gemma2ForCausalLM, {
        "final_logit_softcapping": 3.0, "attn_logit_softcapping": 0.5, "sliding_window": 5}),
    "gemma3-local-global": (Gemma3TextConfig, Gemma3ForCausalLM, {
        "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}),
    "cohere-scale": (CohereConfig, CohereForCausalLM, {"logit_scale": 0.25}),
    "granite-scale": (GraniteConfig, GraniteForCausalLM, {"logits_scaling": 4.0}),
}


def tiny(family: str, *, vocabulary: int, seed: int, hidden: int = 32, layers: int = 2, sharpness: float = 10.0,
         dtype: torch.dtype = torch.float32):
    """A random model; `sharpness` multiplies every matrix, so that distributions are neither flat nor certain."""
    config, model, options = FAMILIES[family]
    torch.manual_seed(seed)
    built = model(config(hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=hidden // 4, vocab_size=vocabulary,
                         bos_token_id=0, eos_token_id=0, pad_token_id=0, **options))
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.mul_(sharpness)
    return capping(built.eval().to(dtype))
