"""What writes rollouts: one section per engine, `type` names it."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.config.section import Count, Positive, Rate, Section, Share
from pipeline.config.served import Served


class TransformersEngine(Section):
    """Models and KV caches of transformers, decoded in batches that shrink as rollouts end."""

    type: Literal["transformers"] = "transformers"
    batch_size: Positive = 64
    """Rollouts decoded together."""


class VllmEngine(Section):
    """vLLM in a process of its own, which is kept from round to round and given the new weights.

    Prefixes are always cached, and tokens are drawn as the transformers engine draws them. `student.attention` does not
    apply: vLLM has kernels of its own.
    """

    type: Literal["vllm"] = "vllm"
    max_num_seqs: Positive = 512
    """Rollouts decoded together, per engine."""
    gpu_memory_utilization: Share = 0.9
    """Share of each GPU that weights and KV cache may take. The engine sleeps while other stages need the device."""
    cpu_kv_cache_gb: Rate = 2.0
    """GiB for keys and values where vLLM runs on a CPU."""
    tensor_parallel: Positive = 1
    """GPUs that share one copy of the model."""
    data_parallel: Positive = 1
    """Engines side by side, each with a copy of the model on GPUs (or a share of the CPU's threads) of its own. A
    prompt's samples stay together."""
    max_model_len: Positive | None = None
    """Tokens of a prompt and its rollout; null: the model's own window, or what its KV cache holds."""
    enforce_eager: bool | None = None
    """Without torch.compile and CUDA graphs; null: on a CPU, where compiling takes longer than it saves."""
    probe_rollouts: Count = 4
    """Rollouts of a round whose log-probs are compared with those of transformers on a CPU: the proof that the engine
    has the round's weights. 0: none, the score stage's gate remains."""


class VllmServer(Served):
    """A vLLM server that somebody else runs and reloads, asked through its OpenAI-compatible API.

    Under a temperature or a nucleus it must be started with `--logprobs-mode processed_logprobs`: rollouts keep the
    density that they were drawn from. Its weights are proved against the round's checkpoint before anything is drawn.
    """

    type: Literal["vllm_server"] = "vllm_server"
    reload: Literal["none", "rpc"] = "none"
    """none: whoever runs the server gives it the weights of each round. rpc: it is told to read them, through the
    /collective_rpc of a server started with VLLM_SERVER_DEV_MODE=1, which sees the checkpoint's folder; on a CPU also
    with --worker-extension-cls pipeline.vllm.reload.TakesWeights. Others' requests get the new weights too."""
    checkpoint_path: str = "{folder}"
    """reload = 'rpc': the checkpoint's folder as the server sees it. {folder} is its path here, {name} its last two
    parts, such as checkpoint=3/1a2b3c4d5e6f."""

    @field_validator("checkpoint_path")
    @classmethod
    def _names_the_folder(cls, path: str) -> str:
        if not ("{folder}" in path or "{name}" in path) or not path.isprintable():
            raise ValueError(f"checkpoint_path = {path!a} names the same folder for every round: write {{folder}} or "
                             "{name} in it")
        return path


Engine = Annotated[TransformersEngine | VllmEngine | VllmServer, Field(discriminator="type")]
