"""Packed weights are never stale: the next call sees every write, whoever writes and how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastvision import ops
from fastvision.testing.marks import needs_library
from fastvision.testing.numerics import assert_matches

pytestmark = needs_library
C = 12


def conv(module: Any, x: Tensor) -> Tensor:
    bn = module.bn
    return ops.conv_bn_relu(
        x, module.conv.weight, module.conv.bias,
        bn_weight=bn.weight, bn_bias=bn.bias,
        running_mean=bn.running_mean, running_var=bn.running_var, padding=1,
    )  # fmt: skip


def transposed(module: Any, x: Tensor) -> Tensor:
    return ops.conv_transpose2d(x, module.conv.weight, module.conv.bias, stride=2)


def linear(module: Any, x: Tensor) -> Tensor:
    return ops.linear_act(x.flatten(2), module.fc.weight, module.fc.bias)


def layer_by_layer(module: Any, x: Tensor) -> Tensor:
    """What torch's own layers give for the weights as they are."""
    if hasattr(module, "fc"):
        return F.relu(module.fc(x.flatten(2)))
    layers = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    y = layers[0]._conv_forward(x, layers[0].weight, layers[0].bias) if isinstance(
        layers[0], nn.Conv2d
    ) else F.conv_transpose2d(x, layers[0].weight, layers[0].bias, layers[0].stride)  # fmt: skip
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    return y if module.plain else F.relu(y)


def holder(plain: bool = False, **layers: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, layer in layers.items():
        setattr(module, name, layer)
    module.plain = plain
    return module.eval()


def callable_module(module: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    module.plain = False
    return module.eval(), module


def compiled_module() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    module = ops.Conv2dNormActivation(C, C).eval()
    module.plain = False
    return module, torch.compile(module, backend="aot_eager")


def of_function(function: Callable[..., Tensor], **layers: Any) -> Any:
    module = holder(**layers)
    return module, lambda x: function(module, x)


CALLS: dict[str, Callable[[], tuple[nn.Module, Callable[[Tensor], Tensor]]]] = {
    "conv_bn_relu": lambda: of_function(
        conv, conv=nn.Conv2d(C, C, 3, padding=1), bn=nn.BatchNorm2d(C)
    ),
    "winograd": lambda: callable_module(ops.Conv2dNormActivation(32, 32)),
    "Conv2dNormActivation": lambda: callable_module(ops.Conv2dNormActivation(C, C)),
    "without a norm": lambda: callable_module(ops.Conv2dNormActivation(C, C, norm_layer=None)),
    "ConvBNReLU2d": lambda: callable_module(ops.ConvBNReLU2d(C, C, 3, padding=1)),
    "conv_transpose2d": lambda: of_function(
        transposed, plain=True, conv=nn.ConvTranspose2d(C, C, 2, stride=2)
    ),
    "ConvTranspose2dNormActivation": lambda: callable_module(
        ops.ConvTranspose2dNormActivation(C, C, 2, stride=2, padding=0)
    ),
    "linear_act": lambda: of_function(linear, fc=nn.Linear(400, 1024)),
    "compiled": compiled_module,
}


def fused_step(kind: str) -> Callable[[nn.Module], None]:
    def write(module: nn.Module) -> None:
        optimizer = getattr(torch.optim, kind)(module.parameters(), lr=0.1, fused=True)
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        optimizer.zero_grad()

    return write


def batch_statistics(module: nn.Module) -> None:
    """torch's own batch norm, in training, writes to the running statistics."""
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.train()(torch.randn(4, norm.num_features, 5, 5) * 3 + 1)
        norm.eval()
    first(module).data.mul_(1)


def first(module: nn.Module) -> nn.Parameter:
    return next(module.parameters())


def by_data(module: nn.Module) -> None:
    first(module).data.copy_(torch.randn_like(first(module)))


def one_filter_by_data(module: nn.Module) -> None:
    first(module).data[3].zero_()


def one_input_channel(module: nn.Module) -> None:
    first(module).data[:, 5].mul_(-1)


def one_number(module: nn.Module) -> None:
    first(module).data.view(-1)[-1] += 10


def every_sign(module: nn.Module) -> None:
    first(module).data.neg_()


def by_numpy(module: nn.Module) -> None:
    first(module).detach().numpy()[...] *= 2


def by_dlpack(module: nn.Module) -> None:
    torch.from_dlpack(first(module).detach()).mul_(2)


def by_storage(module: nn.Module) -> None:
    weight = first(module).detach()
    weight.untyped_storage().copy_(weight.clone().neg().untyped_storage())


def other_memory(module: nn.Module) -> None:
    first(module).data = torch.randn_like(first(module))


def in_inference_mode(module: nn.Module) -> None:
    with torch.inference_mode():
        first(module).mul_(2)


def swapped(module: nn.Module) -> None:
    other = nn.Parameter(torch.randn_like(first(module)))
    torch.utils.swap_tensors(first(module), other)


def exchanged(module: nn.Module) -> None:
    """Two filters trade places: the same numbers in another order."""
    weight = first(module).data
    weight[[0, 1]] = weight[[1, 0]]


WRITES = {
    **{f"fused {kind}": fused_step(kind) for kind in ("SGD", "Adam", "AdamW", "Adagrad")},
    **{
        write.__name__: write
        for write in (
            *(batch_statistics, by_data, one_filter_by_data, one_input_channel, one_number),
            *(every_sign, by_numpy, by_dlpack, by_storage, other_memory, in_inference_mode),
            *(swapped, exchanged),
        )
    },
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("write", WRITES)
def test_next_call_uses_what_was_written(call: str, write: str) -> None:
    torch.manual_seed(0)
    module, run = CALLS[call]()
    x = torch.randn(2, 32 if call == "winograd" else C, 20, 20)
    if call == "winograd":
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        for _ in range(2):  # packs, and repeats
            assert_matches(run(x), layer_by_layer(module, x), scale=4)
    for _ in range(2):
        WRITES[write](module)
        with torch.no_grad():
            for _ in range(2):
                assert_matches(run(x), layer_by_layer(module, x), scale=4)


def test_averaged_weights_are_swapped_in_and_out():
    """The same values come back: nothing of the time between may be left."""
    torch.manual_seed(0)
    model = ops.Conv2dNormActivation(C, C).eval()
    x = torch.randn(1, C, 9, 9)
    own = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        before = model(x)
        for _ in range(3):
            for p in model.parameters():
                p.data.mul_(1.5)
            assert not torch.equal(model(x), before)
            for name, p in model.named_parameters():
                p.data.copy_(own[name])
            assert torch.equal(model(x), before)


def _learner(weight: Tensor, written: Any) -> None:
    weight.fill_(2)
    written.set()


def test_another_process_writes_to_shared_memory():
    context = torch.multiprocessing.get_context("spawn")
    weight = torch.ones(4, C, 1, 1).share_memory_()
    x = torch.ones(1, C, 3, 3)
    assert ops.conv_bn_relu(x, weight).unique().item() == C
    written = context.Event()
    process = context.Process(target=_learner, args=(weight, written))
    process.start()
    assert written.wait(120)
    process.join()
    assert ops.conv_bn_relu(x, weight).unique().item() == 2 * C


def _rank(rank: int, folder: str, results: Any) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(rank)
    module = ops.Conv2dNormActivation(C, C, norm_layer=None).eval()
    module.plain = False
    x = torch.randn(1, C, 8, 8)
    with torch.no_grad():
        module(x)
        for collective in (
            lambda t: dist.broadcast(t, 0),
            lambda t: dist.all_reduce(t),
            lambda t: dist.all_reduce(t, op=dist.ReduceOp.MAX),
        ):
            for tensor in module.parameters():
                collective(tensor.data)
            error = (module(x) - layer_by_layer(module, x)).abs().max().item()
            results.put(error)
    dist.destroy_process_group()


def test_collectives_write(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    processes = [
        context.Process(target=_rank, args=(rank, str(tmp_path), results)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    assert max(results.get() for _ in range(6)) < 1e-3


def test_modules_move_under_the_swap_setting():
    module = ops.Conv2dNormActivation(C, C).eval()
    x = torch.randn(1, C, 6, 6)
    with torch.no_grad():
        module(x)
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module.to(torch.float64)
        module.load_state_dict(module.state_dict())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    module.plain = False
    with torch.no_grad():
        assert_matches(module(x.double()), layer_by_layer(module, x.double()))
