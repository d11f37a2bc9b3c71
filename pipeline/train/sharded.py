"""A student cut over ranks by FSDP2: each rank keeps 1 / ranks of the weights, gradients and optimizer state.

    layers and norms      sharded; gathered layer by layer in each pass, in the pass's precision; gradients are reduced
                          in float32 as each layer's backward pass ends
    embedding and head    whole on every rank in float32, since the support head reads and writes single rows of them in
                          place, which FSDP's hooks do not see. Their gradients are summed over a step's passes in one
                          buffer and reduced once per step; moments and the optimizer's copy are sharded like the rest

A 7B model on 8 ranks (152 k x 3584 embedding and head, untied) takes 13 GB per rank for the layers' shards, 8.7 GB for
embedding and head whole with their gradients, and 2.2 GB for the shards of both. Gathered anew in each pass they would
save 7 GB and move 4.4 GB more for every pass of a step.

Rank 0 alone reads the checkpoint's weights and writes the next ones, a parameter at a time.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline.models.loading import capping
from pipeline.train.parallel import Ranks


class WholeMatrix:
    """A parameter that every rank holds whole for computing, and a shard of for its optimizer."""

    def __init__(self, whole: nn.Parameter, mesh: DeviceMesh):
        self.whole, self._mesh = whole, mesh
        self.shard = nn.Parameter(distribute_tensor(whole.data, mesh, [Shard(0)]))

    def reduce_gradient(self) -> None:
        """shard.grad = this rank's rows of the sum of all ranks' gradients."""
        grad = torch.zeros_like(self.whole) if self.whole.grad is None else self.whole.grad
        partial = DTensor.from_local(grad, self._mesh, [Partial()], run_check=False)
        self.shard.grad = partial.redistribute(placements=[Shard(0)])

    @torch.no_grad()
    def gather(self) -> None:
        self.whole.copy_(self.shard.full_tensor())


class ShardedModel:
    """The weights of one model over all ranks, by the names that they have in one process."""

    def __init__(self, model: nn.Module, ranks: Ranks, precision: str):
        """`model` is cut in place; its weights may lie on the meta device: `fill` brings them."""
        self.model, self._ranks = model, ranks
        self._mesh = init_device_mesh(ranks.device.type, (ranks.size,))
        whole = {parameter for module in (model.get_input_embeddings(), model.get_output_embeddings())
                 for parameter in module.parameters()}
        policy = MixedPrecisionPolicy(param_dtype=getattr(torch, precision), reduce_dtype=torch.float32,
                                      cast_forward_inputs=False)
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        for module in (*layers, model.base_model):
            # the root too: weights left whole after a pass without gradient would miss the next update
            fully_shard(module, mesh=self._mesh, mp_policy=policy, reshard_after_forward=True, ignored_params=whole)
            module.set_gradient_divide_factor(1.0)  # the loss is divided by the step's denominator already
            module.set_force_sum_reduction_for_comms(True)
        self._whole: dict[str, WholeMatrix] = {}

    def fill(self, source: nn.Module | None) -> None:
        """Take weights and buffers from rank 0's `source`, a parameter at a time."""
        self.model.to_empty(device=self._ranks.device)
        self.model.tie_weights()
        weights, buffers = (dict(each) for each in ((source.named_parameters(), source.named_buffers())
                                                    if source is not None else ((), ())))
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                full = self._from_first(weights.get(name), parameter.shape, parameter.dtype)
                parameter.copy_(distribute_tensor(full, self._mesh, parameter.placements)
                                if isinstance(parameter, DTensor) else full)
            for name, buffer in self.model.named_buffers():
                buffer.copy_(self._from_first(buffers.get(name), buffer.shape, buffer.dtype))
        self._whole = {name: WholeMatrix(parameter, self._mesh) for name, parameter in self.model.named_parameters()
                       if not isinstance(parameter, DTensor) and parameter.requires_grad}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What an optimizer trains on this rank: shards."""
        for name, parameter in self.model.named_parameters():
            yield name, self._whole[name].shard if name in self._whole else parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for _, parameter in self.named_parameters())

    def reduce_gradients(self) -> None:
        """Sum what FSDP does not: call once after a step's last backward pass, on every rank."""
        for matrix in self._whole.values():
            matrix.reduce_gradient()

    def updated(self) -> None:
        """Gather what FSDP does not: call after every update."""
        for matrix in self._whole.values():
            matrix.gather()

    def fill_state(self, optimizer: torch.optim.Optimizer, run_steps: int,
                   states: dict[str, dict[str, Tensor]]) -> int:
        """Take the optimizer's state from rank 0's `states`, and return its `run_steps`, on every rank."""
        steps = self._from_first(torch.tensor(run_steps), torch.Size(), torch.int64)
        for name, parameter in self.named_parameters():
            if not self._from_first(torch.tensor(name in states), torch.Size(), torch.bool):
                continue
            state = states.get(name, {})
            step = self._from_first(state.get("step"), torch.Size(), torch.float32)
            optimizer.state[parameter] = {"step": step}
            for moment in ("exp_avg", "exp_avg_sq"):
                full = self._from_first(state.get(moment), parameter.shape, torch.float32)
                optimizer.state[parameter][moment] = distribute_tensor(full, self._mesh, [Shard(0)])
        return int(steps)

    def _from_first(self, value: Tensor | None, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        full = torch.empty(shape, dtype=dtype, device=self._ranks.device) if value is None else value.detach().to(
            self._ranks.device, dtype)
        torch.distributed.broadcast(full, 0)
        return full


def empty_model(config_json: bytes, attention: str) -> nn.Module:
    """The model that a config.json describes, in evaluation mode, its weights on the meta device."""
    with tempfile.TemporaryDirectory(prefix="opd-config-") as folder:
        (Path(folder) / "config.json").write_bytes(config_json)
        config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
    return capping(model.eval())
