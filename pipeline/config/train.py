"""[train]: the optimizer, what a step is, and when a round's training ends."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import Count, Decay, Dtype, Positive, Rate, Section


class Lora(Section):
    """Trains W + alpha / rank * B A in place of W, with all of W frozen (Hu et al., arXiv 2106.09685), through peft."""

    rank: Positive = 32
    alpha: Rate = 64
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Names that the trained modules end with, as in ["q_proj", "v_proj"]; "all-linear": all but the output head."""

    @field_validator("target_modules")
    @classmethod
    def _some_module(cls, names):
        if not names:
            raise ValueError('names no module: give some, or "all-linear"')
        return names


class Train(Section):
    """AdamW over the cached round."""

    learning_rate: Rate = 2e-6
    warmup_steps: Count = 10
    """Linear, counted over the whole run, not per round: a fresh Adam without it costs most of the first rounds."""
    rollouts_per_step: Positive = 64
    epochs: Positive = 1
    """Passes over the round's rollouts."""
    micro_batch_tokens: Positive = 8192
    """Tokens (prompts included) per forward pass; a step accumulates as many as it needs."""
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    eps: Rate = 1e-8
    weight_decay: float = Field(default=0.0, ge=0, strict=False)
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit keeps both moments in 8 bits, 2 bytes per parameter where AdamW has 8 (bitsandbytes, on a GPU)."""
    max_grad_norm: Rate = 1.0
    precision: Dtype = "float32"
    """Of the forward pass; bfloat16 keeps float32 master weights."""
    gradient_checkpointing: bool = False
    """Keeps only the input of each layer and computes the layer again in the backward pass: the same gradients for one
    more forward pass, in memory that long responses of a large student fit into."""
    packing: Literal["auto", "padded", "packed"] = "auto"
    """A forward pass as a table padded to its longest rollout, or as rollouts end to end, each attending to itself.
    auto: packed on a GPU in bfloat16 where attention has a kernel for it, padded otherwise."""
    compile: bool = False
    """torch.compile of layers at their first pass, which takes a minute and a C++ compiler; 4 % faster on two cores."""
    ranks: Positive = 1
    """Processes that share every step, one per GPU (on a CPU they share out `threads`), weights and optimizer sharded
    by FSDP2. What a step computes does not depend on it, beyond rounding."""
    lora: Lora | None = None
    """Trains an adapter; null: all weights."""
    reduction: Literal["token_mean", "sequence_mean"] = "token_mean"
    """A step's loss is the mean over its tokens (Revisiting OPD), or over its rollouts of the mean in each."""
    denominator: Literal["unmasked", "all"] = "unmasked"
    """The token mean divides by unmasked tokens, or by all response tokens."""
    age_cap: Positive | None = None
    """Most optimizer steps on one round's rollouts; null: 4 for objectives of the sampled token, 8 for all others."""
    drift_fuse: Rate | None = 0.05
    """Nats of KL(p_0 || p_now), over the cached student top-k and its tail on the probed 1/32 of a step's positions, at
    which the round's training ends early, before that step is applied; null: never."""

    @model_validator(mode="after")
    def _denominator_is_of_the_token_mean(self):
        if self.reduction == "sequence_mean" and self.denominator == "all":
            raise ValueError("train.denominator = 'all' is of the token mean, and train.reduction = 'sequence_mean' "
                             "divides by rollouts: drop one of the two")
        return self

    @model_validator(mode="after")
    def _a_sharded_optimizer_is_adamw(self):
        if self.optimizer == "adamw8bit" and self.ranks > 1:
            raise ValueError("train.optimizer = 'adamw8bit' does not shard its state over train.ranks: set ranks = 1, "
                             "or optimizer = 'adamw'")
        return self
