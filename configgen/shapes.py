"""The matrix products of a model, as data for the GEMM benchmark: pure."""

from __future__ import annotations

from configgen.model import ModelSpec

DECODE_TOKENS, PREFILL_TOKENS = 64, 4096
"""A decode step of many sequences, and a chunk of prompts: the two ends between which engines run."""

Shape = tuple[int, int, int]


def gemm_shapes(spec: ModelSpec) -> tuple[Shape, ...]:
    """(m, n, k) of the largest product of attention and of the MLP on one GPU, at decode and at prefill.

    m counts tokens; weights are n x k. TP divides n or k, DP neither: whole shapes are the common case of both.
    """
    inner = spec.intermediate_size or (spec.moe.intermediate_size if spec.moe else None) or 4 * spec.hidden_size
    heads = spec.attention_heads * spec.head_dim
    qkv = heads + 2 * spec.kv_heads * spec.head_dim if spec.mla is None else heads
    weights = ((qkv, spec.hidden_size), (2 * inner, spec.hidden_size), (spec.hidden_size, inner))
    return tuple((m, n, k) for m in (DECODE_TOKENS, PREFILL_TOKENS) for n, k in weights)
