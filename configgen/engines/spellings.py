"""How each engine spells what decides a placement: flags and variables by meaning, as data. A new flag is an edit here.

Read from the parsers of vLLM 0.33.0 and SGLang 0.5.23 themselves, from TensorRT-LLM 1.2 (commands/serve.py,
llmapi/llm_args.py), Megatron-LM core 0.16 (training/arguments.py), DeepSpeed-MII 0.3.3 (entrypoints/
openai_api_server.py), and from the manuals of what starts them: torchrun, mpirun, srun, docker, env and others.
"""

from __future__ import annotations

from collections.abc import Sequence

from configgen.engines.language import Entry, Language, Launcher

_OF_SERVERS = """--host --api-key --chat-template --revision --tokenizer-mode --download-dir --load-format
    --tool-call-parser --reasoning-parser --ssl-keyfile --ssl-certfile"""
"""Spelled alike by vLLM and SGLang."""

_VISIBLE = {"CUDA_VISIBLE_DEVICES": "visible devices", "CUDA_DEVICE_ORDER": "device order"}

_VLLM = Language(
    engine="vllm",
    name="vLLM",
    example="vllm serve MODEL ...",
    entries=(
        Entry(("vllm", "serve")),
        Entry(("-m", "vllm.entrypoints.openai.api_server")),
        Entry(("-m", "vllm.entrypoints.cli.main", "serve")),
        Entry(("*vllm/vllm-openai*",)),  # the image's own entry
    ),
    model_first=True,
    model_once=True,
    abbreviates=True,
    file_ends=(".yaml", ".yml"),
    suffixed=frozenset(("context", "tokens")),
    values={
        "model": "--model",
        "options file": "--config",
        "tp": "--tensor-parallel-size -tp",
        "pp": "--pipeline-parallel-size -pp",
        "dp": "--data-parallel-size -dp",
        "dp local": "--data-parallel-size-local -dpl",
        "dp rank": "--data-parallel-rank -dpn",
        "dp start rank": "--data-parallel-start-rank -dpr",
        "dp address": "--data-parallel-address -dpa",
        "dp rpc port": "--data-parallel-rpc-port -dpp",
        "dp backend": "--data-parallel-backend -dpb",
        "prefill context parallelism": "--prefill-context-parallel-size -pcp",
        "decode context parallelism": "--decode-context-parallel-size -dcp",
        "nnodes": "--nnodes -n",
        "node rank": "--node-rank -r",
        "master address": "--master-addr",
        "master port": "--master-port",
        "port": "--port",
        "executor": "--distributed-executor-backend",
        "devices": "--device-ids",
        "memory fraction": "--gpu-memory-utilization --device-memory-utilization",
        "KV bytes": "--kv-cache-memory-bytes",
        "sequences": "--max-num-seqs",
        "tokens": "--max-num-batched-tokens",
        "context": "--max-model-len",
        "dtype": "--dtype",
        "quantization": "--quantization -q",
        "KV dtype": "--kv-cache-dtype",
        "CPU offload": "--cpu-offload-gb",
        "speculation": "--speculative-config -sc",
        "served name": "--served-model-name",
    },
    switches={
        "expert parallelism": "--enable-expert-parallel -ep",
        "no expert parallelism": "--disable-expert-parallel --no-enable-expert-parallel",
        "no custom all-reduce off": "--enable-custom-all-reduce --no-disable-custom-all-reduce",
        "custom all-reduce off": "--disable-custom-all-reduce",
        "headless": "--headless",
        "external balancer": "--data-parallel-external-lb -dpe --data-parallel-multi-port-external-lb -dpm",
        "hybrid balancer": "--data-parallel-hybrid-lb -dph",
        "eager": "--enforce-eager",
        "no eager": "--no-enforce-eager",
        "LoRA": "--enable-lora",
        "chunks off": "--no-enable-chunked-prefill",
        "no chunks off": "--enable-chunked-prefill",
    },
    several=frozenset(("served name", "--api-key")),
    beside=frozenset(
        f"""{_OF_SERVERS} --seed --tokenizer --uvicorn-log-level --root-path --data-parallel-supervisor-port
        --max-num-active-seqs --max-num-queued-reqs --max-num-queued-tokens --max-num-scheduled-tokens""".split()
    ),
    alone=frozenset(
        """--aggregate-engine-logging --allow-credentials --allow-deprecated-quantization --async-scheduling
        --cohere-is-reasoning-model --cudagraph-metrics --dcp-q-replicate --exclude-tools-when-tool-choice-none
        --fail-on-environ-validation --fully-sharded-loras --grpc --interleave-mm-strings --jit-monitor-verbose
        --kv-cache-metrics --kv-sharing-fast-prefill --language-model-only --log-error-stack
        --long-prefill-token-threshold-adaptive --mm-device-do-normalize --mm-encoder-only --monokernel --numa-bind
        --ray-workers-use-nsight --return-sampling-mask --return-tokens-as-token-ids --scheduler-reserve-full-isl
        --sleep-mode-offload-cudagraph --specialize-active-lora --swa-bounded-replay --tokens-only""".split()
    ),
    variables={**_VISIBLE, "VLLM_PP_LAYER_PARTITION": "layers"},
)

_SGLANG = Language(
    engine="sglang",
    name="SGLang",
    example="sglang serve --model-path MODEL ...",
    entries=(Entry(("sglang", "serve")), Entry(("-m", "sglang.launch_server"))),
    model_first=True,
    dashes_alike=False,
    abbreviates=True,
    file_ends=(".yaml", ".yml"),
    suffixed=frozenset(("context",)),
    values={
        "model": "--model-path --model",
        "options file": "--config",
        "tp": "--tp-size --tensor-parallel-size --tp",
        "pp": "--pp-size --pipeline-parallel-size",
        "dp": "--dp-size --data-parallel-size --dp",
        "ep": "--ep-size --expert-parallel-size --ep",
        "attention dp": "--attn-dp-size --attention-data-parallel-size",
        "expert dp": "--moe-dp-size --moe-data-parallel-size",
        "prefill context parallelism": "--attn-cp-size --attention-context-parallel-size",
        "decode context parallelism": "--dcp-size --decode-context-parallel-size",
        "nnodes": "--nnodes",
        "node rank": "--node-rank",
        "master address": "--dist-init-addr --nccl-init-addr",
        "port": "--port",
        "first GPU": "--base-gpu-id",
        "GPU step": "--gpu-id-step",
        "static fraction": "--mem-fraction-static",
        "sequences": "--max-running-requests",
        "tokens": "--chunked-prefill-size",
        "context": "--context-length",
        "dtype": "--dtype",
        "quantization": "--quantization",
        "KV dtype": "--kv-cache-dtype",
        "CPU offload": "--cpu-offload-gb",
        "speculation": "--speculative-algorithm",
    },
    beside=frozenset(
        f"""{_OF_SERVERS} --log-level --served-model-name --tokenizer-path --attention-backend
        --watchdog-timeout --pp-async-batch-depth --pp-max-micro-batch-size --ep-dispatch-algorithm
        --ep-num-redundant-experts --expert-balancedness-report-mode --expert-distribution-recorder-mode
        --expert-distribution-recorder-buffer-size --max-ep-size --moe-dense-tp-size --batch-notify-size
        --bf16-gemm-backend""".split()
    ),
    switches={
        "attention dp by dp": "--enable-dp-attention",
        "custom all-reduce off": "--disable-custom-all-reduce",
        "NVLS": "--enable-nccl-nvls",
        "eager": "--disable-cuda-graph",
        "LoRA": "--enable-lora",
    },
    alone=frozenset(
        """--abort-on-priority-when-disabled --allow-auto-truncate --checkpoint-engine-wait-weights-before-ready
        --constrained-json-disable-any-whitespace --dcp-replicate-q-proj --debug-cuda-graph --delete-ckpt-after-loading
        --disaggregation-decode-enable-offload-kvcache --disaggregation-decode-enable-radix-cache --dllm-fdfo
        --disaggregation-enable-kv-checksum --encoder-only --experts-shared-outer-loras --export-metrics-to-file
        --flashinfer-mla-disable-ragged --grpc-mode --incremental-streaming-output --language-model-only --language-only
        --log-requests --lora-strict-loading --lora-use-virtual-experts --mlx-enable-sampling --mm-enable-dp-encoder
        --ple-offload-embedding --pre-warm-nccl --prefill-only-disable-kv-cache --quantize-and-serve
        --remote-instance-weight-loader-start-seed-via-transfer-engine --return-input-ids --return-output-ids
        --schedule-low-priority-values-first --show-time-cost --sleep-on-idle --smg-grpc-mode --speculative-adaptive
        --speculative-dspark-align-verify-tokens-to-graph-tier --speculative-enable-w4a4-mxfp4-megamoe
        --speculative-use-block-verification --speculative-use-rejection-sampling --strip-thinking-cache
        --stream-response-default-include-usage --triton-attention-reduce-in-fp32 --weight-loader-disable-mmap
        --weight-loader-drop-cache-after-load --weight-loader-prefetch-checkpoints""".split()
    ),
    variables={**_VISIBLE, "SGLANG_PP_LAYER_PARTITION": "layers"},
)

_TRTLLM = Language(
    engine="trtllm",
    name="TensorRT-LLM",
    example="trtllm-serve serve MODEL ...",
    entries=(Entry(("trtllm-serve", "serve")), Entry(("trtllm-serve",))),
    model_first=True,
    dashes_alike=False,
    file_wins=True,
    values={
        "options file": "--extra_llm_api_options --config",
        "tp": "--tp_size",
        "pp": "--pp_size",
        "ep": "--ep_size",
        "cluster": "--cluster_size",
        "prefill context parallelism": "--cp_size",
        "GPUs per node": "--gpus_per_node",
        "KV fraction": "--kv_cache_free_gpu_memory_fraction --free_gpu_memory_fraction",
        "sequences": "--max_batch_size",
        "tokens": "--max_num_tokens",
        "context": "--max_seq_len",
        "port": "--port",
    },
    beside=frozenset(("--host", "--backend", "--tokenizer", "--log_level")),
    alone=frozenset(("--trust_remote_code", "--enable_chunked_prefill")),
    variables=_VISIBLE,
    keys={
        "tensor_parallel_size": "tp",
        "pipeline_parallel_size": "pp",
        "moe_expert_parallel_size": "ep",
        "moe_tensor_parallel_size": "expert tp",
        "moe_cluster_parallel_size": "cluster",
        "context_parallel_size": "prefill context parallelism",
        "gpus_per_node": "GPUs per node",
        "enable_attention_dp": "attention dp by tp",
        "pp_partition": "layers",
        "kv_cache_config.free_gpu_memory_fraction": "KV fraction",
        "kv_cache_config.dtype": "KV dtype",
        "max_batch_size": "sequences",
        "max_num_tokens": "tokens",
        "max_seq_len": "context",
        "allreduce_strategy": "all-reduce",
        "dtype": "dtype",
        "speculative_config.decoding_type": "speculation",
        "enable_chunked_prefill": "chunks",
    },
)

_DEEPSPEED = Language(
    engine="deepspeed",
    name="DeepSpeed-MII",
    example="python -m mii.entrypoints.openai_api_server --model MODEL ...",
    entries=(Entry(("-m", "mii.entrypoints.openai_api_server")), Entry(("-m", "mii.entrypoints.api_server"))),
    dashes_alike=False,
    abbreviates=True,
    values={
        "model": "--model",
        "tp": "--tensor-parallel --tensor_parallel",
        "dp": "--replica-num --replica_num",
        "context": "--max-length --max_length",
        "port": "--port",
    },
    beside=frozenset(("--deployment-name", "--host")),
    variables=_VISIBLE,
)

_MEGATRON = Language(
    engine="megatron",
    name="Megatron",
    example="torchrun ... run_dynamic_text_generation_server.py ...",
    entries=(Entry(("*text_generation_server.py",)), Entry(("*gpt_dynamic_inference.py",))),
    dashes_alike=False,
    values={
        "model": "--tokenizer-model",
        "checkpoint": "--load",
        "tp": "--tensor-model-parallel-size",
        "pp": "--pipeline-model-parallel-size",
        "ep": "--expert-model-parallel-size",
        "expert tp": "--expert-tensor-parallel-size",
        "prefill context parallelism": "--context-parallel-size",
        "layout": "--pipeline-model-parallel-layout",
        "first stage": "--decoder-first-pipeline-num-layers",
        "last stage": "--decoder-last-pipeline-num-layers",
        "sequences": "--inference-dynamic-batching-max-requests --inference-max-requests",
        "tokens": "--inference-dynamic-batching-max-tokens",
        "context": "--inference-max-seq-length",
        "port": "--port",
    },
    alone=frozenset(
        """--bf16 --fp16 --cache-mla-latents --sequence-parallel --inference-dynamic-batching
        --use-checkpoint-args --no-use-tokenizer-model-from-checkpoint-args --enable-chunked-prefill""".split()
    ),
    beside=frozenset(
        """--tokenizer-type --micro-batch-size --inference-dynamic-batching-buffer-size-gb
        --inference-dynamic-batching-block-size --inference-coordinator-port""".split()
    ),
    variables=_VISIBLE,
)

LANGUAGES = (_VLLM, _SGLANG, _TRTLLM, _DEEPSPEED, _MEGATRON)


def _launcher(
    names: str, alone: str = "", beside: str = "", operands: int = 0, glued: bool = True, **values: str
) -> Launcher:
    told = {meaning.replace("_", " "): spelled for meaning, spelled in values.items()}
    switches = {meaning: told.pop(meaning) for meaning in ("cleared",) if meaning in told}
    language = Language(
        names,
        names,
        names,
        (),
        told,
        switches,
        alone=frozenset(alone.split()),
        beside=frozenset(beside.split()),
        repeated=frozenset(("exported", "unset")),
        dashes_alike=False,
        abbreviates=True,
        glued=glued,
    )
    return Launcher(tuple(names.split()), language, operands)


LAUNCHERS = (
    _launcher(
        "torchrun",
        alone="--standalone --no-python --module -m --no_python",
        nnodes="--nnodes",
        per_node="--nproc-per-node --nproc_per_node",
        node_rank="--node-rank --node_rank",
        master_address="--master-addr --master_addr",
        master_port="--master-port --master_port",
    ),
    _launcher(
        "mpirun mpiexec",
        alone="--allow-run-as-root --oversubscribe --use-hwthread-cpus --tag-output",
        glued=False,
        processes="-n -np --n -c",
        hosts="--host -host -H",
        per_node="-npernode --npernode -ppn",
        exported="-x",
    ),
    _launcher(
        "srun",
        alone="--exclusive --overlap -l --label -u --unbuffered",
        processes="-n --ntasks",
        launcher_nodes="-N --nodes",
        per_node="--ntasks-per-node",
    ),
    _launcher("trtllm-llmapi-launch"),
    _launcher("numactl", alone="-l --localalloc"),
    _launcher("exec export nohup setsid command"),
    _launcher("time", alone="-p -v"),
    _launcher("env", alone="-v", beside="-C --chdir", unset="-u --unset", cleared="-i --ignore-environment"),
    _launcher("sudo", alone="-E -H -n -b --preserve-env", beside="-u --user -g --group"),
    _launcher("timeout", alone="--foreground --preserve-status -v", beside="-s --signal -k --kill-after", operands=1),
    _launcher("taskset", alone="-c --cpu-list -a", operands=1),
    _launcher("nice ionice", beside="-n -c --adjustment"),
    _launcher("docker podman nerdctl uv poetry pixi"),
    _launcher(
        "run",
        alone="--rm -it -ti -i -t -d -dit -itd --detach --init --privileged --interactive --tty",
        beside="""-v --volume -p --publish --name --shm-size --runtime --network --net --ipc --ulimit --mount -w
        --workdir --entrypoint --cpus -m --memory -u --user --device --cap-add --security-opt --env-file --restart""",
        exported="-e --env",
        container_GPUs="--gpus",
    ),
)


def started(words: Sequence[str]) -> tuple[int, Entry, Language] | None:
    """Where an engine is started: the first words that are an entry of one."""
    for place in range(len(words)):
        for language in LANGUAGES:
            for entry in language.entries:
                if entry.fits(words, place):
                    return place, entry, language
    return None
