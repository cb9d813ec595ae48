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

# What _update_from_hf_quant_config does not refuse (tensorrt_llm/llmapi/llm_utils.py): these quant_methods, compressed
# tensors, and ModelOpt's hf_quant_config.json, whose AWQ can't be told from AutoAWQ's here: only the former loads.
_TRTLLM_QUANTIZATIONS = frozenset(("fp8", "mxfp4", "mxfp8", "nvfp4", "awq", "int4", "int8"))

# model_type of each policy in build_hf_engine (deepspeed/inference/v2/engine_factory.py of DeepSpeed 0.19.8).
_FASTGEN_MODEL_TYPES = frozenset(
    "exaone4 exaone4_5 falcon llama mistral mixtral opt phi phi3 qwen qwen2 qwen2_moe".split()
)

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
    "trtllm": (
        EngineTraits(
            engine="trtllm",
            version="1.2",
            memory_utilization=0.9,  # free_gpu_memory_fraction 0.9 of what the weights leave (llmapi/llm_args.py)
            max_batched_tokens=8192,  # --max_num_tokens default (tensorrt_llm/commands/serve.py)
            max_sequences=2048,  # max_batch_size default (tensorrt_llm/llmapi/llm_args.py)
            layer_split=LayerSplit.FIRST,  # Mapping.pp_layers (tensorrt_llm/mapping.py): 80 / 3 = 27,27,26
            # DISPATCH_RANKS of allReduceFusionKernels.cu (16 would span nodes); AUTO takes NCCL without NVLink
            # (selectImplementation of cpp/tensorrt_llm/thop/allreduceOp.cpp).
            custom_all_reduce_sizes=frozenset((2, 4, 8)),
            pair_without_nvlink=False,
            partial_attention_dp=False,  # enable_attention_dp is yes or no for the tp ranks (tensorrt_llm/mapping.py)
            quantizations=_TRTLLM_QUANTIZATIONS,
        ),
    ),
    "megatron": (
        EngineTraits(
            engine="megatron",
            version="0.16",
            memory_utilization=0.9,  # it has no fraction: the KV buffer's size is told; as much as other engines take
            max_batched_tokens=16384,  # DEFAULT_MAX_TOKENS (megatron/core/inference/contexts/dynamic_context.py)
            max_sequences=1024,  # chosen: by itself one for each block of the cache, with tables up to there
            layer_split=LayerSplit.BEFORE_LAST,  # it cuts only evenly by itself: the emitter writes every other cut
            copies_kv_heads=False,  # core_divide(num_query_groups, tp_size) in dynamic_context.py
            quantizations=frozenset(),  # it loads its own checkpoints, written in bfloat16 or float16
        ),
    ),
    "deepspeed": (
        EngineTraits(
            engine="deepspeed",
            version="0.3",
            # DeepSpeed-MII 0.3.3 on DeepSpeed 0.19. It leaves 1 GB free (MemoryConfig.size, inference/v2/ragged/
            # manager_configs.py), which is a twentieth of a 20 GB GPU and less of larger ones.
            memory_utilization=0.95,
            max_batched_tokens=768,  # DSStateManagerConfig.max_ragged_batch_size
            max_sequences=512,  # DSStateManagerConfig.max_ragged_sequence_count
            max_context=8192,  # DSStateManagerConfig.max_context; no flag of the server changes either
            layer_split=LayerSplit.LAST,  # never asked: it has no pipeline
            max_stages=1,  # RaggedInferenceEngineConfig knows tensor_parallel alone
            single_node=True,  # a replica is a list of slots of one host (_allocate_devices, mii/config.py)
            takes_first_gpus=True,  # the same; "CUDA_VISIBLE_DEVICES does not work with DeepSpeed-MII" (device_map)
            expert_parallel=False,  # experts are cut, never spread (model_implementations/{mixtral,qwen_v2_moe})
            attention_dp=False,
            model_types=_FASTGEN_MODEL_TYPES,
            quantizations=frozenset(),  # HuggingFaceCheckpointEngine reads plain weights
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
