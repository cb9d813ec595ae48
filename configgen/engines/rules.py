"""What each engine version allows, as data; a new version is an edit here. Fills EngineTraits for the planner."""

from __future__ import annotations

from configgen.plan import EngineTraits, LayerSplit
from probe.errors import UsageError

# Classes of vLLM 0.33.0 without SupportsPP: read from its model registry (222 of 251 support it), 2026-11.
_VLLM_NO_PIPELINE = frozenset(
    """AliceAIForCausalLM AriaForConditionalGeneration DeepseekV4ForConditionalGeneration
    DiffusionGemmaForBlockDiffusion DomynEdgeForCausalLM DoryForCausalLM FireRedASR2ForConditionalGeneration
    Gemma3nForCausalLM Gemma3nForConditionalGeneration HrmTextForCausalLM IQuestLoopCoderForCausalLM
    Idefics3ForConditionalGeneration Mamba2ForCausalLM NemotronH_Nano_Omni_Reasoning_V3 NemotronH_Nano_VL_V2
    NemotronH_Omni_Reasoning_V3 NemotronH_Super_Omni_Reasoning_V3 NemotronParseForConditionalGeneration
    PaddleOCRVLForConditionalGeneration Phi4MMForCausalLM RadioMBartPrefixForCausalLM SmolVLMForConditionalGeneration
    WhisperForConditionalGeneration Zamba2ForCausalLM""".split()
)

# get_min_capability() of each method in vllm/model_executor/layers/quantization of vLLM 0.33.0, read 2026-11.
_VLLM_MIN_CAPABILITY = {
    "fp8": (7, 5), "awq": (7, 5), "gptq": (6, 0), "compressed-tensors": (7, 0), "modelopt": (8, 0), "nvfp4": (7, 5),
    "mxfp4": (8, 0), "fbgemm_fp8": (8, 0), "torchao": (7, 5), "quark": (7, 0),
}  # fmt: skip

ENGINES: dict[str, tuple[EngineTraits, ...]] = {
    "vllm": (
        EngineTraits(
            engine="vllm",
            version="0.33",
            memory_utilization=0.9,  # --gpu-memory-utilization default (vllm/config/cache.py)
            max_batched_tokens=8192,  # chunked prefill's default on GPUs of 70 GB and more (vllm/engine/arg_utils.py)
            max_sequences=1024,  # --max-num-seqs default of the same GPUs (same file)
            layer_split=LayerSplit.BEFORE_LAST,  # get_pp_indices (vllm/distributed/utils.py): 80 / 3 = 27,27,26
            custom_all_reduce_sizes=frozenset((2, 4, 6, 8)),  # custom_all_reduce.py, _SUPPORTED_WORLD_SIZES
            no_pipeline_architectures=_VLLM_NO_PIPELINE,
            min_capability=_VLLM_MIN_CAPABILITY,
            no_float16_model_types=frozenset(("gemma2", "gemma3", "gemma3_text", "glm4")),  # vllm/config/model.py
            # Each data-parallel rank gets a pipeline of its own inside a node: with --data-parallel-size 8, PP2 and
            # --nnodes 2 vLLM 0.33 resolves data_parallel_size_local 4, so stages would not lie where they are planned.
            attention_dp_with_stages=False,
        ),
    ),
}
"""Per engine its known versions, the newest first."""


def engine_traits(text: str) -> EngineTraits:
    """'vllm' or 'vllm@0.33' -> traits. Raises UsageError on an unknown engine or version."""
    name, _, version = text.partition("@")
    versions = ENGINES.get(name.strip().lower())
    if versions is None:
        raise UsageError(f"engine {name[:40]!r} is not supported", cure=f"Use one of: {', '.join(sorted(ENGINES))}.")
    if not version:
        return versions[0]
    for traits in versions:
        if version == traits.version or version.startswith(traits.version + "."):
            return traits
    known = ", ".join(f"{name}@{t.version}" for t in versions)
    raise UsageError(f"the laws of {name}@{version[:20]} are not known", cure=f"Use one of: {known}.")
