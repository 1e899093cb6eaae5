"""Models of sequences: their equations, what they may see, and that each learns its task."""

import copy
import pickle

import pytest
import torch
from torch import nn

import fastvision
from fastvision import models
from fastvision.models import sequence
from fastvision.models.sequence import tasks

# options, its task, steps of training and the factor by which they lower the loss at least
MODELS = {
    "residual_lstm": (
        {"symbols": 6, "width": 32},
        lambda g: tasks.reversal(64, 4, 6, g),
        (45, 1e-2, 2.0),
    ),
    "wavenet": (
        {"levels": 16, "channels": 16, "skip_channels": 16, "layers": 4, "stacks": 1},
        lambda g: tasks.next_sample(16, 64, 16, g),
        (80, 5e-3, 1.5),
    ),
    "transformer_encoder": (
        {"symbols": 8, "width": 32, "depth": 2, "dropout": 0.0},
        lambda g: tasks.sorting(64, 8, 8, g),
        (100, 3e-3, 2.5),
    ),
}


@pytest.fixture(params=MODELS)
def case(request):
    options, make, training = MODELS[request.param]
    torch.manual_seed(0)
    return models.get_model(request.param, **options), make, training


def batch(make, seed=0):
    inputs, targets = make(torch.Generator().manual_seed(seed))
    return (inputs if isinstance(inputs, tuple) else (inputs,)), targets


def test_learns_its_task(case):
    model, make, (steps, rate, factor) = case
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    unseen, answers = batch(make, seed=1)
    with torch.no_grad():
        before = tasks.loss(model(*unseen), answers).item()
    for _ in range(steps):
        inputs, targets = make(generator)
        loss = tasks.loss(model(*inputs if isinstance(inputs, tuple) else (inputs,)), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        assert tasks.loss(model(*unseen), answers).item() < before / factor


def test_backward(case):
    model, make, _ = case
    inputs, targets = batch(make)
    tasks.loss(model(*inputs), targets).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_fuse_export_and_copies(case):
    model, make, _ = case
    inputs, _ = batch(make)
    expected = model.eval()(*inputs)
    exported = torch.export.export(model, inputs).module()
    for other in (
        fastvision.fuse(model),
        exported,
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
    ):
        torch.testing.assert_close(other(*inputs), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_wavenet_sees_its_receptive_field_and_nothing_else():
    model = sequence.wavenet(levels=8, channels=4, skip_channels=4, layers=3, stacks=2).double()
    assert model.receptive_field == 16
    generator = torch.Generator().manual_seed(0)
    samples = torch.randint(8, (1, 40), generator=generator)
    scores = model(samples)
    for t in (0, 7, 20):
        changed = samples.clone()
        changed[0, t] = (samples[0, t] + 1) % 8
        seen = (model(changed) - scores).abs().amax(-1)[0].nonzero().flatten().tolist()
        assert seen == list(range(t, min(t + model.receptive_field, 40)))


@torch.no_grad()
def test_wavenet_block_computes_the_equation():
    block = sequence.wavenet(levels=8, channels=4, skip_channels=5, layers=3).blocks[1]
    x = torch.randn(2, 4, 10, generator=torch.Generator().manual_seed(0))
    w, b = block.filter_and_gate.weight, block.filter_and_gate.bias
    for t in range(2, 10):  # the dilation is 2
        v = b + x[:, :, t - 2] @ w[:, :, 0].T + x[:, :, t] @ w[:, :, 1].T
        z = torch.tanh(v[:, :4]) * torch.sigmoid(v[:, 4:])
        following, skip = block(x)
        r, s = block.residual, block.skip
        torch.testing.assert_close(following[:, :, t], x[:, :, t] + z @ r.weight[..., 0].T + r.bias)
        torch.testing.assert_close(skip[:, :, t], z @ s.weight[..., 0].T + s.bias)


@pytest.mark.parametrize("pre_norm", [False, True])
@torch.no_grad()
def test_transformer_block_is_torch_s(pre_norm):
    torch.manual_seed(0)
    block = sequence.TransformerBlock(16, 4, 32, pre_norm=pre_norm).eval()
    theirs = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=pre_norm).eval()
    names = {
        "self_attn.in_proj_": "attention.queries_keys_values.",
        "self_attn.out_proj.": "attention.output.",
        "linear1.": "feed_forward.0.",
        "linear2.": "feed_forward.2.",
    }
    state = theirs.state_dict()
    for key, ours in names.items():
        state = {k.replace(key, ours): v for k, v in state.items()}
    block.load_state_dict(state)
    x = torch.randn(2, 7, 16)
    torch.testing.assert_close(block(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_positions_are_sines_and_cosines():
    table = sequence.transformer.positions(5, 6)
    assert torch.equal(table[0], torch.tensor([0.0, 1, 0, 1, 0, 1]))
    torch.testing.assert_close(table[3, 2], torch.tensor(3 / 10000 ** (2 / 6)).sin())
    torch.testing.assert_close(table[3, 3], torch.tensor(3 / 10000 ** (2 / 6)).cos())


@torch.no_grad()
def test_residual_lstm_adds_inputs_from_the_third_layer_on():
    model = sequence.residual_lstm(symbols=5, width=8, depth=4)
    for layer in (*model.encoder[2:], *model.decoder[2:]):
        for parameter in layer.parameters():
            parameter.zero_()  # an LSTM of zeros gives zeros, so the layer becomes the identity
    source, previous = torch.tensor([[1, 2, 3]]), torch.tensor([[0, 3]])
    two = sequence.residual_lstm(symbols=5, width=8, depth=2)
    two.load_state_dict({k: v for k, v in model.state_dict().items() if k in two.state_dict()})
    assert torch.equal(model(source, previous), two(source, previous))


@torch.no_grad()
def test_residual_lstm_generates_the_likeliest_symbols():
    torch.manual_seed(0)
    model = sequence.residual_lstm(symbols=7, width=8, depth=3)
    source = torch.randint(7, (4, 5))
    result = model.generate(source, 6, start=0)
    previous = torch.cat((torch.zeros(4, 1, dtype=torch.long), result[:, :-1]), 1)
    assert torch.equal(model(source, previous).argmax(-1), result)


def test_tasks():
    generator = torch.Generator().manual_seed(0)
    (source, previous), targets = tasks.reversal(3, 5, 4, generator)
    assert source.min() > tasks.START and source.max() < 4
    assert torch.equal(targets, source.flip(1))
    assert torch.equal(previous[:, 1:], targets[:, :-1]) and (previous[:, 0] == tasks.START).all()
    inputs, targets = tasks.next_sample(3, 50, 16, generator)
    assert torch.equal(inputs[:, 1:], targets[:, :-1]) and inputs.unique().numel() > 4
    inputs, targets = tasks.sorting(3, 9, 5, generator)
    assert targets.tolist() == [sorted(row) for row in inputs.tolist()]


def test_mu_law():
    levels = tasks.mu_law(torch.tensor([-1.0, -1e-9, 0, 0.01, 1]), 256)
    # ln(1 + 2.55) / ln(256) = 0.2285, and (1.2285 / 2) 255 = 156.6
    assert levels.tolist()[0] == 0 and levels.tolist()[3:] == [157, 255]


@pytest.mark.parametrize(
    "name, options",
    [
        ("residual_lstm", {"width": 7}),
        ("residual_lstm", {"depth": 1}),
        ("transformer_encoder", {"width": 10, "heads": 4}),
    ],
)
def test_bad_options(name, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        models.get_model(name, **options)
