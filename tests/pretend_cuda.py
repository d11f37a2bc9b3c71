"""A GPU that is not there: tensors that say `cuda` and are computed on the CPU, with what a GPU would refuse refused.

    with pretend_cuda() as gpu:
        train(model.to("cuda"))
    assert gpu.waits ...

Refused: tensors of two devices in one operation; operations without a deterministic kernel on CUDA, where torch was
told to use no others; dtypes, head widths and boundaries that the varlen attention kernel does not take. Noted: every
place where the host waits for the device (`waits`), so that a hot loop can be held to few. Kernels, their speed and
their memory are beyond it. It rests on private parts of torch: FakeTensorMode's.
"""

import collections
import contextlib
import ctypes
import importlib.util
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

GUARD = r"""
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace {
struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  void init() const override {}
};
struct OneDevice final : c10::impl::DeviceGuardImplInterface {
  c10::Device zero() const { return c10::Device(c10::DeviceType::CUDA, 0); }
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return zero(); }
  c10::Device getDevice() const override { return zero(); }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, zero()); }
  c10::Stream exchangeStream(c10::Stream) const override { return getStream(zero()); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, OneDevice)
}
namespace at { using ::CUDAHooks; REGISTER_CUDA_HOOKS(CUDAHooks) }
"""
"""What autograd asks of a device. A CPU build of torch has none for CUDA; built in 4 s."""

def _register() -> None:
    """Torch looks for such hooks once, when it is imported, and autograd counts devices in its first backward pass."""
    assert "torch" not in sys.modules, "import tests.pretend_cuda before torch"
    torch_folder = Path(importlib.util.find_spec("torch").origin).parent
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "guard.so"
        subprocess.run(["c++", "-std=c++20", "-fPIC", "-shared", "-x", "c++", "-", f"-I{torch_folder / 'include'}",
                        "-o", built, f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10",
                        f"-Wl,-rpath,{torch_folder / 'lib'}"], input=GUARD, text=True, check=True)
        ctypes.CDLL(str(torch_folder / "lib" / "libtorch_global_deps.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(built))


_register()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch.__future__ import (  # noqa: E402
    get_swap_module_params_on_conversion,
    set_swap_module_params_on_conversion,
)
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_flatten, tree_unflatten  # noqa: E402

ROOT = str(Path(__file__).parents[1])
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
WAITS = {"_local_scalar_dense", "nonzero", "unique_consecutive", "_unique2", "unique_dim", "masked_select", "equal",
         "bincount"}
"""Operations whose result's size or value the host needs."""
SCATTERS = {"scatter", "scatter_", "scatter_add", "scatter_add_"}
MIXES = {"copy_", "_to_copy"}
"""Operations between two devices."""
HALF = (torch.bfloat16, torch.float16)


class OnCuda(torch.Tensor):
    """A CPU tensor that says it lies on cuda:0."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        found = torch.Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(), dtype=inner.dtype,
                                                    storage_offset=inner.storage_offset(), device=CUDA)
        found.inner = inner
        return found

    def __init__(self, inner: torch.Tensor):
        pass

    def tolist(self) -> list:
        return self.cpu().tolist()

    def numpy(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} after the GPU was gone")


class PretendCuda(TorchDispatchMode):
    """Computes what involves OnCuda tensors, or is asked to lie on cuda, on the CPU."""

    def __init__(self, largest: int | None):
        super().__init__()
        self.largest = largest
        self.waits: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func._schema.name.split("::")[1], dict(kwargs or {})
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # in inference mode nothing has taken it apart yet
                return func.decompose(*args, **kwargs)
        leaves, shape = tree_flatten((args, kwargs))
        ours = [leaf for leaf in leaves if isinstance(leaf, OnCuda)]
        others = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, OnCuda)]
        target = kwargs.get("device")
        on_cuda = bool(ours) if target is None else torch.device(target).type == "cuda"
        if not ours and not on_cuda and name not in ("is_pinned", "_pin_memory"):
            kwargs.pop("pin_memory", None)
            return func(*args, **kwargs)
        self._check(name, ours, others, leaves, kwargs)
        self._note(name, args, kwargs, ours, on_cuda)
        plain_args, plain = tree_unflatten([leaf.inner if isinstance(leaf, OnCuda) else leaf for leaf in leaves], shape)
        plain.pop("pin_memory", None)
        if target is not None:
            plain["device"] = CPU
        found = COMPUTED.get(str(func) if name == "mm" else name, func)(*plain_args, **plain)
        known = {id(leaf.inner): leaf for leaf in ours}
        results, shape = tree_flatten(found)
        if name == "_to_copy" and results[0] is args[0]:
            results = [results[0].clone()]
        if on_cuda and self.largest and any(isinstance(each, torch.Tensor) and each.numel() > self.largest
                                            for each in results):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB. GPU 0 has no more")
        wrap = OnCuda if on_cuda else lambda tensor: tensor
        return tree_unflatten([known[id(each)] if id(each) in known else wrap(each) if isinstance(each, torch.Tensor)
                               else each for each in results], shape)

    def _check(self, name, ours, others, leaves, kwargs):
        strangers = [each for each in others if each.dim() or name.startswith("_fused")]
        if ours and strangers and name not in MIXES:
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found cuda:0 and cpu "
                               f"({_place()})")
        floats = bool(ours) and ours[0].is_floating_point()
        refused = (name == "bincount" and len(ours) > 1) or (name == "cumsum" and floats) or name in (
            "put_", "histc", "kthvalue", "nll_loss2d_forward", "_embedding_bag_dense_backward_max")
        if refused and torch.are_deterministic_algorithms_enabled():
            raise RuntimeError(f"{name} does not have a deterministic implementation, but you set "
                               f"'torch.use_deterministic_algorithms(True)' ({_place()})")

    def _note(self, name, args, kwargs, ours, on_cuda):
        waits = name in WAITS or (name == "repeat_interleave" and kwargs.get("output_size") is None)
        if name in ("index", "index_put_", "_index_put_impl_"):
            waits = any(index is not None and index.dtype == torch.bool for index in args[1])
        if name in SCATTERS and isinstance(args[3], torch.Tensor) and args[0].dim() > 1:
            waits = torch.are_deterministic_algorithms_enabled()  # copies all of it, and strides from the host
        if name == "_to_copy":
            waits = not kwargs.get("non_blocking") and on_cuda != isinstance(args[0], OnCuda)
        if name == "copy_":
            blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
            waits = blocking and len({isinstance(each, OnCuda) for each in args[:2]}) == 2
        if waits:
            self.waits[f"{name} {_place()}"] += 1


def _place() -> str:
    """The line of ours that is running."""
    frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(ROOT + "/pipeline")]
    return f"{frames[-1].filename[len(ROOT) + 1:]}:{frames[-1].lineno}" if frames else "outside pipeline/"


def _mm(a, b, out_dtype):
    assert a.dtype == b.dtype and a.dtype in HALF and out_dtype == torch.float32
    return a.float() @ b.float()


def _varlen(query_THD, key_UHD, value_UHD, starts_q, starts_k, most_q, most_k, is_causal=False, scale=None,
            window_size=None, *more):
    """What torch's varlen kernel computes, and what it refuses."""
    for each in (query_THD, key_UHD, value_UHD):
        assert each.dtype in HALF and each.stride(-1) == 1 and each.shape[-1] % 8 == 0 and each.shape[-1] <= 256
    assert starts_q.dtype == starts_k.dtype == torch.int32 and starts_q.shape == starts_k.shape
    sizes_q, sizes_k = starts_q.diff().tolist(), starts_k.diff().tolist()
    assert (max(sizes_q), max(sizes_k)) == (most_q, most_k) and min(sizes_q + sizes_k) > 0
    assert (sum(sizes_q), sum(sizes_k)) == (len(query_THD), len(key_UHD)) and key_UHD.shape == value_UHD.shape
    parts = []
    for query, key, value in zip(query_THD.split(sizes_q), key_UHD.split(sizes_k), value_UHD.split(sizes_k)):
        seen = _seen(len(query), len(key), is_causal, window_size)
        heads = _heads(query, key, value)
        parts.append(F.scaled_dot_product_attention(*heads, attn_mask=seen, scale=scale).transpose(0, 1))
    out = torch.cat(parts).to(query_THD.dtype)
    return out, out.new_zeros(query_THD.shape[1], len(out), dtype=torch.float32), torch.zeros(2, dtype=torch.uint64)


def _varlen_backward(grad_THD, query_THD, key_UHD, value_UHD, out, lse, starts_q, starts_k, most_q, most_k, is_causal,
                     rng, scale=None, window_size=None):
    sizes_q, sizes_k = starts_q.diff().tolist(), starts_k.diff().tolist()
    scale, found = query_THD.shape[-1] ** -0.5 if scale is None else scale, []
    for query, key, value, grad in zip(query_THD.split(sizes_q), key_UHD.split(sizes_k), value_UHD.split(sizes_k),
                                       grad_THD.split(sizes_q)):
        groups = query.shape[1] // key.shape[1]
        query, key, value, grad = *_heads(query, key, value), grad.float().transpose(0, 1)
        scores = (query @ key.mT * scale).masked_fill(~_seen(query.shape[1], key.shape[1], is_causal, window_size),
                                                      -torch.inf)
        weights = scores.softmax(-1)
        slopes = grad @ value.mT
        slopes = weights * (slopes - (slopes * weights).sum(-1, keepdim=True)) * scale
        found.append([each.transpose(0, 1) for each in (slopes @ query_or_key for slopes, query_or_key in (
            (slopes, key), (slopes.mT, query), (weights.mT, grad)))])
        found[-1][1:] = [each.unflatten(1, (-1, groups)).sum(2) for each in found[-1][1:]]
    return tuple(torch.cat(parts).to(query_THD.dtype) for parts in zip(*found))


def _heads(query, key, value):
    """In float32, heads first, those of keys and values repeated for their queries."""
    groups = query.shape[1] // key.shape[1]
    return (query.float().transpose(0, 1),
            *(each.float().transpose(0, 1).repeat_interleave(groups, 0) for each in (key, value)))


def _seen(queries, keys, is_causal, window_size):
    left, right = window_size or (-1, -1)
    ahead = torch.arange(keys) - (torch.arange(queries)[:, None] + keys - queries)
    seen = (ahead <= 0) if is_causal or right == 0 else torch.ones_like(ahead, dtype=torch.bool)
    return seen & (ahead >= -left) if left >= 0 else seen


COMPUTED = {"aten.mm.dtype": _mm, "_varlen_attn": _varlen, "_varlen_attn_backward": _varlen_backward,
            "_fused_sdp_choice": lambda *_, **__: 0,  # the math: no kernel of a GPU
            "is_pinned": lambda *_, **__: False, "_pin_memory": lambda tensor, *_: tensor.clone()}
"""Operations that have no CPU kernel, or another one."""


class _Event:
    """Of torch.cuda: what was copied is there."""

    def record(self, stream=None): ...

    def synchronize(self): ...


@contextlib.contextmanager
def pretend_cuda(largest: int | None = None) -> Iterator[PretendCuda]:
    """A machine with one GPU, without Triton. `largest`: numbers in a tensor that still fit."""
    lifted, swapped = torch._C._only_lift_cpu_tensors(), get_swap_module_params_on_conversion()
    mode = PretendCuda(largest)
    torch._C._set_only_lift_cpu_tensors(True)
    set_swap_module_params_on_conversion(True)  # a module's parameters become OnCuda, not its parameters' data
    try:
        with (mock.patch("torch.cuda._lazy_init"), mock.patch("torch.cuda.is_available", lambda: True),
              mock.patch("torch.cuda.Event", _Event),
              mock.patch("torch.cuda.get_device_capability", lambda *_: (9, 0)),
              # whose tensors cannot be of a class of ours
              mock.patch("torch._C._InferenceMode", lambda mode: torch.no_grad()),
              mock.patch("torch.cuda.is_bf16_supported", lambda *_: True),
              mock.patch("torch.amp.autocast_mode.torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
              mock.patch("pipeline.train.support.paths.triton_runs", lambda: False), mode):
            yield mode
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)
        set_swap_module_params_on_conversion(swapped)
