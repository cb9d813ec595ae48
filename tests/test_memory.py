"""Bytes per GPU: what is cut, what is replicated, what stops growing, and that stages add up to the model."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configgen.memory import (
    COMMUNICATOR_BYTES,
    RUNTIME_BYTES,
    StageMemory,
    activation_bytes,
    kv_bytes_per_token,
    overhead_bytes,
    sequence_bytes,
    stage_weight_bytes,
)
from configgen.model import ModelSpec
from configgen.model_config import spec_from_config

BASE: dict[str, Any] = {
    "model_type": "llama", "num_hidden_layers": 8, "hidden_size": 512, "num_attention_heads": 8,
    "num_key_value_heads": 2, "intermediate_size": 1536, "vocab_size": 1024, "torch_dtype": "bfloat16",
}  # fmt: skip
EXPERTS = {"model_type": "qwen3_moe", "num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
LATENT = {
    "model_type": "deepseek_v3", "kv_lora_rank": 512, "q_lora_rank": 256, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip
LINEAR = {
    "model_type": "qwen3_next", "full_attention_interval": 4, "linear_num_key_heads": 4, "linear_key_head_dim": 32,
    "linear_num_value_heads": 8, "linear_value_head_dim": 64, "linear_conv_kernel_dim": 4, "mamba_ssm_dtype": "float32",
}  # fmt: skip


def spec(**facts: Any) -> ModelSpec:
    return spec_from_config(BASE | facts, name="test", source="test")


def one_gpu(model: ModelSpec, first: int = 0, last: int | None = None) -> int:
    return stage_weight_bytes(model, first, model.layers if last is None else last, attention_tp=1, tp=1, ep=1)


@pytest.mark.parametrize("facts", [{}, EXPERTS, LATENT, LINEAR, {"tie_word_embeddings": True}])
def test_one_gpu_holds_the_whole_model(facts: dict[str, Any]) -> None:
    model = spec(**facts)
    assert one_gpu(model) == model.weight_bytes


@given(st.lists(st.integers(1, 7), max_size=4), st.sampled_from([{}, EXPERTS, LATENT, LINEAR]))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_stages_add_up_to_the_model(cuts: list[int], facts: dict[str, Any]) -> None:
    model = spec(**facts)
    edges = sorted({0, *cuts, model.layers})
    assert sum(one_gpu(model, a, b) for a, b in pairwise(edges)) == model.weight_bytes


def test_a_tied_embedding_stands_on_both_end_stages() -> None:
    tied, table = spec(tie_word_embeddings=True), 2 * 1024 * 512
    assert one_gpu(tied, 0, 4) + one_gpu(tied, 4, 8) == tied.weight_bytes + table


def test_tensor_parallelism_cuts_matrices_and_replicates_the_rest() -> None:
    model = spec()
    cut = stage_weight_bytes(model, 1, 2, attention_tp=2, tp=2, ep=1)
    norms = 2 * 512 * 2
    assert cut - norms == (one_gpu(model, 1, 2) - norms) // 2
    # 2 KV heads on 8 ranks: each rank holds one whole head, not a quarter of one.
    eight = stage_weight_bytes(model, 1, 2, attention_tp=8, tp=8, ep=1)
    assert eight - norms == 2 * (2 * 512 * 512 // 8 + 2 * 64 * 512 + 3 * 512 * 1536 // 8)


def test_experts_are_spread_and_cut() -> None:
    model = spec(**EXPERTS)
    experts = 2 * 16 * 3 * 512 * 256
    rest = one_gpu(model, 1, 2) - experts
    for ep in (1, 2, 4):
        replicated_attention = stage_weight_bytes(model, 1, 2, attention_tp=1, tp=4, ep=ep)
        assert replicated_attention == rest + experts // 4


def test_latent_projections_are_replicated() -> None:
    model = spec(**LATENT)
    down = 2 * 512 * (256 + 512 + 64)
    norms = 2 * (2 * 512 + 256 + 512)
    cut = stage_weight_bytes(model, 1, 2, attention_tp=8, tp=8, ep=1)
    assert cut - down - norms == (one_gpu(model, 1, 2) - down - norms) // 8


def test_kv_cache_of_grouped_query_attention() -> None:
    model = spec()
    assert kv_bytes_per_token(model, 0, 8, attention_tp=1) == 8 * 2 * 2 * 64 * 2
    assert kv_bytes_per_token(model, 0, 8, attention_tp=2) == 8 * 2 * 1 * 64 * 2
    assert kv_bytes_per_token(model, 0, 8, attention_tp=8) == 8 * 2 * 1 * 64 * 2  # replicated
    assert kv_bytes_per_token(model, 2, 5, attention_tp=1) == 3 * 2 * 2 * 64 * 2
    assert sequence_bytes(model, 0, 8, tokens=100, attention_tp=1) == 100 * 8 * 2 * 2 * 64 * 2


def test_kv_cache_of_latent_attention_is_the_same_on_every_rank() -> None:
    """70,272 bytes per token for DeepSeek-V3's 61 layers, as its authors' shapes give: 61 x (512 + 64) x 2."""
    model = spec(**LATENT, num_hidden_layers=61)
    for tp in (1, 4, 8):
        assert kv_bytes_per_token(model, 0, 61, attention_tp=tp) == 70_272


def test_sliding_layers_stop_at_their_window() -> None:
    model = spec(model_type="gemma2", sliding_window=100)
    token = 2 * 2 * 64 * 2
    assert kv_bytes_per_token(model, 0, 8, attention_tp=1) == 4 * token
    assert sequence_bytes(model, 0, 8, tokens=50, attention_tp=1) == 8 * 50 * token
    assert sequence_bytes(model, 0, 8, tokens=1000, attention_tp=1) == 4 * 1000 * token + 4 * 100 * token
    assert sequence_bytes(model, 0, 1, tokens=1000, attention_tp=1) == 100 * token


def test_linear_layers_keep_a_state_of_constant_size() -> None:
    model = spec(**LINEAR)
    state = 8 * 32 * 64 * 4 + (2 * 4 * 32 + 8 * 64) * 3 * 2
    assert sequence_bytes(model, 0, 3, tokens=10, attention_tp=1) == 3 * state
    assert sequence_bytes(model, 0, 3, tokens=10**6, attention_tp=1) == 3 * state
    assert sequence_bytes(model, 0, 3, tokens=10, attention_tp=4) == 3 * state // 4
    assert kv_bytes_per_token(model, 0, 8, attention_tp=1) == 2 * 2 * 2 * 64 * 2


def test_activations_grow_with_tokens_and_shrink_with_tp() -> None:
    for model in (spec(), spec(**EXPERTS)):
        sizes = [activation_bytes(model, tokens=8192, tp=tp) for tp in (1, 2, 4, 8)]
        assert sizes == sorted(sizes, reverse=True)
        assert activation_bytes(model, tokens=1024, tp=1) < sizes[0]
    llama3_8b = spec(num_hidden_layers=32, hidden_size=4096, num_attention_heads=32, vocab_size=128256)
    assert activation_bytes(llama3_8b, tokens=8192, tp=1) == pytest.approx(1.26 * 2**30, rel=0.15)


def test_overhead_has_communicators_only_where_gpus_talk() -> None:
    assert overhead_bytes(1) == RUNTIME_BYTES
    assert overhead_bytes(2) == overhead_bytes(16) == RUNTIME_BYTES + COMMUNICATOR_BYTES


def test_stage_memory_fits_or_does_not() -> None:
    assert StageMemory(10, 5, 3, 2, 20).fits
    assert not StageMemory(10, 6, 3, 2, 20).fits
    assert StageMemory(10, 6, 3, 2, 20).needed_bytes == 21
    with pytest.raises(ValueError, match="never negative"):
        StageMemory(-1, 0, 0, 0, 0)


@pytest.mark.parametrize(("first", "last"), [(-1, 4), (4, 4), (5, 4), (0, 9)])
def test_a_stage_is_a_range_of_layers(first: int, last: int) -> None:
    with pytest.raises(ValueError, match="first < last"):
        stage_weight_bytes(spec(), first, last, attention_tp=1, tp=1, ep=1)


def test_a_search_asks_cheaply() -> None:
    model = spec(num_hidden_layers=128, **EXPERTS)
    start = time.perf_counter()
    for _ in range(5000):
        stage_weight_bytes(model, 3, 90, attention_tp=4, tp=8, ep=2)
        sequence_bytes(model, 3, 90, tokens=4096, attention_tp=4)
    assert time.perf_counter() - start < 1.0
