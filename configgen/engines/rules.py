"""What each engine version allows, as data; a new version is an edit here. Fills EngineTraits for the planner."""

from __future__ import annotations

from dataclasses import replace

from configgen.plan import EngineTraits, LayerSplit
from probe.errors import UsageError

# Classes of vLLM 0.33.0 without SupportsPP: asked of its model registry, on CUDA, 2026-11.
_VLLM_NO_PIPELINE = frozenset(
    """AliceAIForCausalLM AriaForConditionalGeneration CohereAsrForConditionalGeneration
    DiffusionGemmaForBlockDiffusion DomynEdgeForCausalLM DoryForCausalLM FireRedASR2ForConditionalGeneration
    FunASRForConditionalGeneration Gemma3nForCausalLM Gemma3nForConditionalGeneration HrmTextForCausalLM
    IQuestLoopCoderForCausalLM Idefics3ForConditionalGeneration Mamba2ForCausalLM NemotronH_Nano_Omni_Reasoning_V3
    NemotronH_Nano_VL_V2 NemotronH_Omni_Reasoning_V3 NemotronH_Super_Omni_Reasoning_V3
    NemotronParseForConditionalGeneration PaddleOCRVLForConditionalGeneration Phi4MMForCausalLM
    RadioMBartPrefixForCausalLM SmolVLMForConditionalGeneration WhisperForConditionalGeneration
    Zamba2ForCausalLM""".split()
)

# get_min_capability() of each method in vllm/model_executor/layers/quantization of vLLM 0.33.0, read 2026-11; of gptq
# what its only kernel needs (verify_marlin_supported in utils/marlin_utils.py refuses 7.0, though gptq says 6.0).
_VLLM_MIN_CAPABILITY = {
    "fp8": (7, 5), "awq": (7, 5), "gptq": (7, 5), "compressed-tensors": (7, 0), "modelopt": (8, 0), "nvfp4": (7, 5),
    "mxfp4": (8, 0), "fbgemm_fp8": (8, 0), "torchao": (7, 5), "quark": (7, 0),
}  # fmt: skip

# What _update_from_hf_quant_config does not refuse (tensorrt_llm/llmapi/llm_utils.py): these quant_methods, compressed
# tensors, and ModelOpt's hf_quant_config.json, whose AWQ can't be told from AutoAWQ's here: only the former loads.
_TRTLLM_QUANTIZATIONS = frozenset(("fp8", "mxfp4", "mxfp8", "nvfp4", "awq", "int4", "int8"))

# model_type of each policy in build_hf_engine (deepspeed/inference/v2/engine_factory.py of DeepSpeed 0.19.8).
_FASTGEN_MODEL_TYPES = frozenset(
    "exaone4 exaone4_5 falcon llama mistral mixtral opt phi phi3 qwen qwen2 qwen2_moe".split()
)

# Model classes of SGLang 0.5.23 whose forward() takes no pp_proxy_tensors, which is what its model runner asks
# ("Pipeline Parallel is not compatible with this model"), or that assert a single stage; read from srt/models, 2026-11.
_SGLANG_NO_PIPELINE = frozenset(
    """AfmoeForCausalLM BaichuanForCausalLM ChatGLMModel Cohere2ForCausalLM Cohere2MoeForCausalLM
    Cohere2VisionForConditionalGeneration CohereForCausalLM DbrxForCausalLM DeepseekForCausalLM
    DeepseekOCRForCausalLM DeepseekVL2ForCausalLM DiffusionGemmaForBlockDiffusion DotsOCRForCausalLM
    Ernie4_5_ForCausalLM Ernie4_5_MoeForCausalLM Ernie4_5_VLMoeForConditionalGeneration ExaoneForCausalLM
    FalconH1ForCausalLM FalconMambaForCausalLM GPT2LMHeadModel GPTBigCodeForCausalLM GPTJForCausalLM
    Gemma2ForCausalLM Gemma3ForCausalLM Gemma3ForConditionalGeneration Gemma3nForCausalLM
    Gemma3nForConditionalGeneration Gemma4UnifiedForConditionalGeneration GemmaForCausalLM
    GlmAsrForConditionalGeneration GlmImageForConditionalGeneration GraniteForCausalLM GraniteMoeForCausalLM
    GraniteMoeSWAForCausalLM GraniteMoeSharedForCausalLM GraniteSWAForCausalLM Grok1ForCausalLM HYV3ForCausalLM
    HYV4ForCausalLM HrmTextForCausalLM HunYuanDenseV1ForCausalLM HunYuanMoEV1ForCausalLM
    IQuestLoopCoderForCausalLM IQuestQ1ForCausalLM InklingForConditionalGeneration InternLM2ForCausalLM
    InternS1ForConditionalGeneration InternS2MobiusForConditionalGeneration InternVLChatModel
    JetNemotronForCausalLM JetVLMForConditionalGeneration KimiVLForConditionalGeneration Lfm2ForCausalLM
    Lfm2MoeForCausalLM Lfm2VlForConditionalGeneration LightOnOCRForConditionalGeneration
    Llama4ForConditionalGeneration LlavaLlamaForCausalLM LlavaMistralForCausalLM LlavaQwenForCausalLM
    LlavaVidForCausalLM LocateAnythingForConditionalGeneration LongcatFlashForCausalLM Mamba2ForCausalLM
    MambaForCausalLM MiDashengLMModel MiMoForCausalLM MiniCPM3ForCausalLM MiniCPMForCausalLM MiniCPMO
    MiniCPMSALAForCausalLM MllamaForConditionalGeneration MultiModalityCausalLM MuseGlimmerForCausalLM
    MuseGlimmerForConditionalGeneration MuseSparkForConditionalGeneration NVILAForConditionalGeneration
    NVILALiteForConditionalGeneration NanbeigeForCausalLM NemotronH_Nano_Omni_Reasoning_V3 NemotronH_Nano_VL_V2
    NemotronH_Omni_Reasoning_V3 Olmo2ForCausalLM OlmoForCausalLM OlmoeForCausalLM OrionForCausalLM
    POINTSV15ChatModel PaddleOCRVLForConditionalGeneration PersimmonForCausalLM Phi3SmallForCausalLM
    Phi4MMForCausalLM PhiForCausalLM PhiMoEForCausalLM PixtralForConditionalGeneration QWenLMHeadModel
    Qwen2AudioForConditionalGeneration Qwen2VLForConditionalGeneration Qwen3ASRForConditionalGeneration
    Qwen3NextForCausalLM SDARForCausalLM SDARMoeForCausalLM Sarashina2VisionForCausalLM StableLmForCausalLM
    Starcoder2ForCausalLM Step3VLForConditionalGeneration Step3p7ForConditionalGeneration
    StepVLForConditionalGeneration UnlimitedOCRForCausalLM VoxtralForConditionalGeneration
    WhisperForConditionalGeneration XverseForCausalLM XverseMoeForCausalLM YiVLForCausalLM""".split()
)

# get_min_capability() in srt/layers/quantization of SGLang 0.5.23, of the method that CUDA takes in the end (gptq runs
# as gptq_marlin; of compressed-tensors and modelopt the format that needs the least), read 2026-11.
_SGLANG_MIN_CAPABILITY = {
    "fp8": (8, 0), "awq": (7, 5), "gptq": (8, 0), "compressed-tensors": (8, 0), "modelopt": (8, 0), "nvfp4": (8, 0),
    "mxfp4": (8, 0), "mxfp8": (10, 0), "bitsandbytes": (7, 5),
}  # fmt: skip

# Models that lose range in float16, by vllm/config/model.py.
_NOT_FLOAT16 = frozenset(("gemma2", "gemma3", "gemma3_text", "glm4"))

_VLLM_033 = EngineTraits(
    engine="vllm",
    version="0.33",
    memory_utilization=0.9,  # always told: --gpu-memory-utilization by itself is 0.92 (vllm/config/cache.py)
    max_batched_tokens=8192,  # chunked prefill's default on GPUs of 70 GB and more (vllm/engine/arg_utils.py)
    max_sequences=1024,  # --max-num-seqs default of the same GPUs (same file)
    layer_split=LayerSplit.BEFORE_LAST,  # get_pp_indices (vllm/distributed/utils.py): 80 / 3 = 27,27,26
    custom_all_reduce_sizes=frozenset((2, 4, 6, 8)),  # custom_all_reduce.py, _SUPPORTED_WORLD_SIZES
    no_pipeline_architectures=_VLLM_NO_PIPELINE,
    min_capability=_VLLM_MIN_CAPABILITY,
    no_float16_model_types=_NOT_FLOAT16,
    # Each data-parallel rank gets a pipeline of its own inside a node: with --data-parallel-size 8, PP2 and
    # --nnodes 2 vLLM 0.33 resolves data_parallel_size_local 4, so stages would not lie where they are planned.
    attention_dp_with_stages=False,
    no_kv_copies=frozenset(("GptOssForCausalLM",)),  # num_key_value_heads // tp_size (models/gpt_oss.py)
    vocabulary_padding=64,  # DEFAULT_VOCAB_PADDING_SIZE (layers/vocab_parallel_embedding.py), then divide()
)

ENGINES: dict[str, tuple[EngineTraits, ...]] = {
    "vllm": (
        _VLLM_033,
        replace(_VLLM_033, version="0.32"),  # all of the same laws, asked of it as well
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
    "sglang": (
        EngineTraits(
            engine="sglang",
            version="0.5.23",
            # It bounds weights and KV alone (--mem-fraction-static) and by itself gives them 0.812 of an 81,559 MiB GPU
            # with TP8, 0.830 with TP1 (handle_gpu_memory_settings in srt/arg_groups/memory_hook.py, run); activations
            # and runtime, which a plan counts as well, are 0.04 of such a GPU.
            memory_utilization=0.85,
            max_batched_tokens=8192,  # --chunked-prefill-size default on GPUs of 60 to 160 GB (the same function)
            layer_split=LayerSplit.LAST,  # get_pp_indices (srt/distributed/utils.py): 80 / 3 = 26,27,27
            # _sm90_configs (srt/distributed/device_communicators/configs/custom_all_reduce_v2.py); without NVLink
            # between all GPUs 2 remain, by custom_all_reduce.py.
            custom_all_reduce_sizes=frozenset(range(2, 9)),
            no_pipeline_architectures=_SGLANG_NO_PIPELINE,
            min_capability=_SGLANG_MIN_CAPABILITY,
            oldest_capability=(7, 5),  # "SGLang only supports sm75 and above" (load_model_utils.py)
            no_float16_model_types=_NOT_FLOAT16,
            mig=False,  # can_use_custom_all_reduce_with_nvlink reads CUDA_VISIBLE_DEVICES by int()
            whole_stages=True,  # _calculate_rank_ranges (srt/entrypoints/engine.py): pp // nnodes, nnodes // pp
            prompts_first=True,  # --enable-mixed-chunk is off
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
