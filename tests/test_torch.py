"""torch modules read directly: the graph as a stream gives what the module gives, or the refusal
names the culprit.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import stepwell
from stepwell.errors import ImportRefused, QuantizeError
from stepwell.layers import (
    Attention,
    Concat,
    Dense,
    Embedding,
    Gru,
    LayerNorm,
    Lstm,
    MaxPool,
    Rnn,
    Window,
)
from stepwell.metrics import sqnr_db
from stepwell.stream import FloatStream, run_in_mode

torch = pytest.importorskip("torch")
from stepwell.importer.torch import import_torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

LIMIT = 1e-5
N_IN, UNITS = 5, 6


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(3)


class Net(nn.Module):
    """A module of the given submodules; ``forward`` is a function of it and its arguments."""

    def __init__(self, run, **submodules):
        super().__init__()
        for name, submodule in submodules.items():
            setattr(self, name, submodule)
        self.run = run

    def forward(self, x):
        return self.run(self, x)


class StepNet(Net):
    def forward(self, x, state):
        return self.run(self, x, state)


def kinds(graph) -> list[type]:
    return [type(layer) for layer in graph.layers]


def checked(module: nn.Module, batch_first: bool = True, n_steps: int = 23, **options):
    """The import, its stream compared once more with the module in float32 and with a length of its
    own.
    """
    imported = import_torch(module, **options)
    graph = imported.graph
    assert imported.replay.error <= LIMIT
    n_steps = options.get("steps", n_steps)
    x = torch.randn(3, n_steps, graph.n_in)
    with torch.no_grad():
        y = module.eval()(x if batch_first else x.transpose(0, 1))
    y = y[0] if isinstance(y, tuple) else y
    streamed = FloatStream(graph).run(x.numpy())
    if graph.readout == "last":
        streamed = streamed[:, -1]
    elif not batch_first:
        streamed = streamed.swapaxes(0, 1)
    np.testing.assert_allclose(streamed.reshape(y.shape), y.numpy(), atol=2e-5)
    return graph


# ---- the matrix: cell x layers x batch_first x head ----

CELLS = {
    "lstm": (nn.LSTM, {}, [Lstm]),
    "gru": (nn.GRU, {}, [Gru]),
    "rnn tanh": (nn.RNN, {"nonlinearity": "tanh"}, [Rnn]),
    "rnn relu": (nn.RNN, {"nonlinearity": "relu"}, [Rnn]),
    "proj": (nn.LSTM, {"proj_size": 3}, [Lstm]),
    "no bias": (nn.GRU, {"bias": False}, [Gru]),
    "bidirectional lstm": (nn.LSTM, {"bidirectional": True}, [Lstm, Lstm, Concat]),
    "bidirectional gru": (nn.GRU, {"bidirectional": True}, [Gru, Gru, Concat]),
}


def features_last(net, x):
    return net.rnn(x)[0]


def last_step(net, x):
    out, _ = net.rnn(x)
    return net.fc(out[:, -1] if net.rnn.batch_first else out[-1])


HEADS = {
    "none": features_last,
    "last": last_step,
    "every": lambda net, x: net.fc(net.rnn(x)[0]),
    "softmax": lambda net, x: torch.softmax(last_step(net, x), dim=-1),
}


MATRIX = list(itertools.product(CELLS, (1, 2, 3), (True, False), HEADS))


@pytest.mark.parametrize("cell, n_layers, batch_first, head", MATRIX)
def test_matrix(cell, n_layers, batch_first, head):
    build, options, layers = CELLS[cell]
    rnn = build(
        N_IN,
        UNITS,
        n_layers,
        batch_first=batch_first,
        dropout=0.4 if n_layers > 1 else 0,
        **options,
    )
    width = options.get("proj_size", UNITS) * (2 if "bidirectional" in options else 1)
    graph = checked(Net(HEADS[head], rnn=rnn, fc=nn.Linear(width, 2)), batch_first)
    assert kinds(graph) == layers * n_layers + [Dense] * (head != "none")
    assert graph.readout == ("last" if head in ("last", "softmax") else "every")
    assert graph.n_in == N_IN
    assert getattr(graph.layers[-1], "activation", "none") == (
        "softmax" if head == "softmax" else "none"
    )


# ---- what is read out ----

READOUTS = {
    "h[-1]": lambda net, x: net.rnn(x)[1][0][-1],
    "h[-1, :, :]": lambda net, x: net.rnn(x)[1][0][-1, :, :],
    "h[0] of two": lambda net, x: net.rnn(x)[1][0][0],
    "out[:, -1, :]": lambda net, x: net.rnn(x)[0][:, -1, :],
    "out[:, -1:]": lambda net, x: net.rnn(x)[0][:, -1:],
    "out[..., -1, 2:4]": lambda net, x: net.rnn(x)[0][..., -1, 2:4],
    "select": lambda net, x: net.rnn(x)[0].select(1, -1),
    "last by size": lambda net, x: net.rnn(x)[0][:, x.size(1) - 1],
    "transposed": lambda net, x: net.rnn(x)[0].transpose(0, 1)[-1],
    "h flattened": lambda net, x: net.rnn(x)[1][0].transpose(0, 1).reshape(x.shape[0], -1),
    "h joined": lambda net, x: torch.cat([net.rnn(x)[1][0][-1], net.rnn(x)[1][0][-2]], dim=1),
    "h as a grid": lambda net, x: net.rnn(x)[1][0].view(2, 1, x.size(0), UNITS)[-1].squeeze(0),
}


@pytest.mark.parametrize("name", READOUTS)
def test_readouts(name):
    graph = checked(Net(READOUTS[name], rnn=nn.LSTM(N_IN, UNITS, 2, batch_first=True)))
    assert graph.readout == "last"


def test_unused_layers_are_left_out():
    graph = checked(
        Net(
            READOUTS["h[0] of two"],
            rnn=nn.LSTM(N_IN, UNITS, 2, batch_first=True),
            spare=nn.Linear(2, 2),
        )
    )
    assert kinds(graph) == [Lstm]


BIDIRECTIONAL = {
    "cat": lambda net, x: torch.cat((net.rnn(x)[1][0][-2], net.rnn(x)[1][0][-1]), 1),
    "named": lambda net, x: torch.cat(
        (net.rnn(x)[1][0][-2, :, :], net.rnn(x)[1][0][-1, :, :]), dim=-1
    ),
    "grid": lambda net, x: net.rnn(x)[1][0].view(1, 2, x.size(0), UNITS)[-1][1],
    "sum of halves": lambda net, x: net.rnn(x)[0][:, :, :UNITS] + net.rnn(x)[0][:, :, UNITS:],
}


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_bidirectional(name):
    graph = checked(
        Net(BIDIRECTIONAL[name], rnn=nn.LSTM(N_IN, UNITS, batch_first=True, bidirectional=True))
    )
    assert graph.needs_window


def test_squeezed_state_of_one_layer():
    def run(net, x):
        _, (h_n, _) = net.rnn(x)
        return net.fc(h_n.squeeze(0)).squeeze(-1)

    assert kinds(
        checked(Net(run, rnn=nn.LSTM(N_IN, UNITS), fc=nn.Linear(UNITS, 1)), batch_first=False)
    ) == [
        Lstm,
        Dense,
    ]


# ---- bare modules, Sequential, cells ----


@pytest.mark.parametrize("build", [nn.LSTM, nn.GRU, nn.RNN])
def test_bare_layers(build):
    assert checked(build(3, 4, 2), batch_first=False).readout == "every"
    assert checked(build(3, 4, 2, batch_first=True)).readout == "every"


@pytest.mark.parametrize("build, kind", [(nn.LSTMCell, Lstm), (nn.GRUCell, Gru), (nn.RNNCell, Rnn)])
def test_bare_cells(build, kind):
    cell = build(3, 4)
    graph = import_torch(cell).graph
    assert kinds(graph) == [kind]
    x, state = torch.randn(9, 2, 3), None
    for step in x:
        state = cell(step, state)
    h = state[0] if isinstance(state, tuple) else state
    streamed = FloatStream(graph).run(x.transpose(0, 1).numpy())[:, -1]
    np.testing.assert_allclose(streamed, h.detach().numpy(), atol=1e-5)


def test_sequential_of_cells():
    graph = import_torch(
        nn.Sequential(nn.GRUCell(3, 4), nn.LSTMCell(4, 5), nn.Dropout(), nn.Linear(5, 2), nn.Tanh())
    ).graph
    assert kinds(graph) == [Gru, Lstm, Dense] and graph.layers[-1].activation == "tanh"


def test_sequential_of_layers():
    graph = import_torch(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 2))
    ).graph
    assert kinds(graph) == [Dense, Lstm, Dense] and graph.layers[0].activation == "relu"


class TwoCells(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.fc = nn.LSTMCell(3, 4), nn.GRUCell(4, 5), nn.Linear(5, 2)

    def forward(self, x, state, h2):
        h, c = self.first(x, state)
        h2 = self.second(h, h2)
        return self.fc(h2), (h, c), h2


def test_step_module_with_cells():
    assert kinds(import_torch(TwoCells()).graph) == [Lstm, Gru, Dense]


def with_head(net, x, state):
    out, state = net.rnn(x, state)
    return net.fc(out[:, -1]), state


def with_named_states(net, x, state):
    out, (h, c) = net.rnn(x, (state["h"], state["c"]))
    return {"y": net.fc(out), "state": {"h": h, "c": c}}


STEPS = {
    "windows": lambda net, x, state: net.rnn(x, state),
    "one vector": lambda net, x, state: net.rnn(x.unsqueeze(1), state),
    "head": with_head,
    "named states": with_named_states,
}


@pytest.mark.parametrize("name", STEPS)
def test_step_module_with_a_layer(name):
    net = StepNet(STEPS[name], rnn=nn.LSTM(3, 4, 2, batch_first=True), fc=nn.Linear(4, 2))
    assert kinds(import_torch(net).graph)[:2] == [Lstm, Lstm]


def test_step_module_with_a_default_state():
    class Stateful(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(3, 4, batch_first=True)

        def forward(self, x, h=None):
            if h is None:
                h = torch.zeros(1, x.shape[0], 4)
            return self.rnn(x, h)

    assert kinds(checked(Stateful())) == [Gru]


class StackedCells(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.fc = nn.ModuleList([nn.LSTMCell(3, 4), nn.LSTMCell(4, 4)]), nn.Linear(4, 2)

    def forward(self, x, states):
        after = []
        for k, cell in enumerate(self.cells):
            x, c = cell(x, states[k])
            after.append((x, c))
        return self.fc(x), after


def test_step_module_with_a_list_of_states():
    assert kinds(import_torch(StackedCells()).graph) == [Lstm, Lstm, Dense]


def test_a_state_kept_in_the_module_starts_from_zeros():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.h = nn.GRU(3, 4, batch_first=True), None

        def forward(self, x):
            y, self.h = self.rnn(x, self.h)
            return y

    module = Keeps()
    assert kinds(import_torch(module).graph) == [Gru]
    assert module.h is None


def test_state_must_be_returned():
    with pytest.raises(ImportRefused, match=r"'state' hands a state in.* return \(output, state\)"):
        import_torch(StepNet(lambda net, x, state: net.cell(x, state) * 2, cell=nn.GRUCell(3, 4)))


# ---- initial states ----


class WithZeros(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(3, 4, 2, batch_first=True)

    def forward(self, x):
        h0 = torch.zeros(2, x.size(0), 4).to(x.device)
        c0 = torch.zeros(2, x.size(0), 4, device=x.device, dtype=x.dtype).requires_grad_()
        out, _ = self.rnn(x, (h0.detach(), c0.detach()))
        return out


class Learned(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 4)
        self.h0 = nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, x):
        return self.rnn(x, self.h0.expand(-1, x.size(1), -1).contiguous())[0]


def test_zero_states_made_in_forward():
    assert all(layer.h0 is None and layer.c0 is None for layer in checked(WithZeros()).layers)


def test_learned_initial_state():
    module = Learned()
    (layer,) = checked(module, batch_first=False).layers
    np.testing.assert_allclose(layer.h0, module.h0.detach().numpy().ravel())


# ---- activations ----

ACTIVATIONS = [
    nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.LeakyReLU(0.2), nn.ELU(0.7), nn.CELU(1.3), nn.SELU(), nn.GELU(), nn.GELU("tanh"),
    nn.SiLU(), nn.Hardsigmoid(), nn.Hardswish(), nn.Softplus(), nn.Softsign(), nn.ReLU6(), nn.Mish(), nn.Threshold(0.1, 0),
    nn.Hardtanh(-0.2, 0.3), nn.PReLU(), nn.RReLU(), nn.GLU(),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda module: type(module).__name__)
def test_activation_modules(activation):
    net = Net(
        lambda net, x: net.act(net.fc(net.rnn(x)[0])),
        rnn=nn.GRU(3, 4, batch_first=True),
        fc=nn.Linear(4, 4),
        act=activation,
    )
    checked(net)


FUNCTIONS = {
    "torch.relu": torch.relu, "F.relu": F.relu, "method": lambda y: y.relu(), "tanh": lambda y: y.tanh(), "F.silu": F.silu,
    "F.leaky_relu": lambda y: F.leaky_relu(y, 0.3), "F.gelu": lambda y: F.gelu(y, approximate="tanh"), "F.elu": F.elu,
    "F.softmax": lambda y: F.softmax(y, dim=-1), "method softmax": lambda y: y.softmax(2), "F.hardtanh": F.hardtanh,
    "clamp": lambda y: y.clamp(-0.1, 0.2), "clamp at 0": lambda y: torch.clamp(y, min=0), "F.softplus": F.softplus,
    "F.relu6": F.relu6,
    "F.mish": F.mish, "F.hardswish": F.hardswish, "F.hardsigmoid": F.hardsigmoid, "F.selu": F.selu,
    "F.dropout": lambda y: F.dropout(y, 0.5, False), "abs": torch.abs, "F.glu": F.glu,
    "F.threshold": lambda y: F.threshold(y, 0.1, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_activation_functions(name):
    net = Net(
        lambda net, x: FUNCTIONS[name](net.fc(net.rnn(x)[0])),
        rnn=nn.GRU(3, 4, batch_first=True),
        fc=nn.Linear(4, 4),
    )
    checked(net)


# ---- arithmetic ----


class Arithmetic(Net):
    def __init__(self, run):
        super().__init__(
            run, rnn=nn.GRU(4, 4, batch_first=True), other=nn.Linear(4, 4), gate=nn.Linear(4, 1)
        )
        self.scale = nn.Parameter(torch.randn(4))
        self.matrix = nn.Parameter(torch.randn(4, 3))
        self.register_buffer("offset", torch.randn(1, 1, 4))


SUMS = {
    "residual": lambda net, x: net.rnn(x)[0] + x,
    "difference": lambda net, x: torch.sub(net.rnn(x)[0], x, alpha=2),
    "in place": lambda net, x: net.rnn(x)[0].add_(x),
    "gate": lambda net, x: net.rnn(x)[0] * torch.sigmoid(net.other(x)),
    "one gate for all": lambda net, x: torch.sigmoid(net.gate(x)) * net.rnn(x)[0],
    "highway": lambda net, x: (1 - net.other(x).sigmoid()) * x + net.rnn(x)[0] / 3,
    "parameters": lambda net, x: net.scale * net.rnn((x - net.offset) / 2.0)[0] + net.offset,
    "one value and a vector": lambda net, x: net.gate(net.rnn(x)[0]) * net.scale,
    "matmul": lambda net, x: net.rnn(x)[0] @ net.matrix,
    "F.linear": lambda net, x: F.linear(net.rnn(x)[0], net.matrix.t()),
    "negative": lambda net, x: -net.rnn(x)[0],
    "square": lambda net, x: net.rnn(x)[0] ** 2,
    "mean of features": lambda net, x: net.rnn(x)[0].mean(-1),
    "sum of features": lambda net, x: net.rnn(x)[0].sum(dim=2, keepdim=True),
    "largest feature": lambda net, x: net.rnn(x)[0].max(dim=-1).values,
    "argmax": lambda net, x: net.rnn(x)[0].argmax(-1),
    "index of max": lambda net, x: torch.max(net.rnn(x)[0], 2)[1],
    "chunk": lambda net, x: net.rnn(x)[0].chunk(2, dim=-1)[1],
    "split": lambda net, x: torch.cat(net.rnn(x)[0].split([1, 3], dim=2)[::-1], dim=2),
    "unbind": lambda net, x: net.rnn(x)[0].unbind(-1)[2],
    "view of all steps": lambda net, x: net.other(net.rnn(x)[0].reshape(-1, 4)).view(
        x.size(0), x.size(1), -1
    ),
    "odd axes": lambda net, x: net.rnn(x.permute(0, 2, 1).movedim(1, 2).unsqueeze(0).squeeze(0))[
        0
    ].flatten(2),
    "sizes asked": lambda net, x: net.rnn(x if x.dim() == 3 and len(x) > 0 else x.unsqueeze(0))[
        0
    ].view(*x.shape),
}


@pytest.mark.parametrize("name", SUMS)
def test_arithmetic(name):
    checked(Arithmetic(SUMS[name]), n_in=4)


def test_scalings_and_activations_are_fused():
    graph = import_torch(
        Net(
            lambda net, x: F.relu(net.bn(net.fc(net.rnn(x)[0][:, -1]))),
            rnn=nn.GRU(3, 4, batch_first=True),
            fc=nn.Linear(4, 4),
            bn=nn.BatchNorm1d(4),
        )
    ).graph
    assert kinds(graph) == [Gru, Dense] and graph.layers[-1].activation == "relu"


WIDTHS = {
    "slices": lambda net, x: net.rnn(x[..., :4])[0] + x[..., 4:],
    "joined": lambda net, x: net.rnn(torch.cat([x[..., :2], x[..., -2:]], -1))[0],
}


@pytest.mark.parametrize("name", WIDTHS)
def test_width_of_the_input_that_no_layer_tells(name):
    with pytest.raises(ImportRefused, match="cannot be told from its layers: give it, n_in="):
        import_torch(Arithmetic(WIDTHS[name]))
    assert checked(Arithmetic(WIDTHS[name]), n_in=8 if name == "slices" else 5)


def test_width_of_the_input_told_by_what_is_made_of_it():
    assert (
        checked(Arithmetic(lambda net, x: net.rnn(torch.cat([torch.tanh(x), x], dim=-1))[0])).n_in
        == 2
    )
    assert checked(Arithmetic(lambda net, x: net.rnn((x - net.offset) * net.scale)[0])).n_in == 4


def test_a_layer_read_twice_is_not_fused():
    def run(net, x):
        y = net.fc(net.rnn(x)[0])
        return y + F.relu(y)

    graph = checked(Net(run, rnn=nn.GRU(3, 4, batch_first=True), fc=nn.Linear(4, 4)))
    assert len(graph.layers) == 4


# ---- hybrids ----


def residual_stack(net, x):
    x = net.first(x)
    for rnn, norm in zip(net.rnns, net.norms, strict=True):
        x = x + F.dropout(rnn(norm(x))[0], 0.1, training=net.training)
    return net.fc(x[:, -1]), net.other(x[:, -1])


def test_residual_stack_with_two_heads():
    net = Net(
        residual_stack,
        first=nn.Linear(3, 4),
        rnns=nn.ModuleList([nn.LSTM(4, 4, batch_first=True) for _ in range(3)]),
        norms=nn.ModuleList([nn.LayerNorm(4) for _ in range(3)]),
        fc=nn.Linear(4, 2),
        other=nn.Linear(4, 5),
    )
    assert checked(net, outputs="output0").n_out == 2
    graph = import_torch(net).graph
    assert [(output.name, output.size) for output in graph.outputs] == [
        ("output0", 2),
        ("output1", 5),
    ]


def settled(norm: nn.BatchNorm1d) -> nn.BatchNorm1d:
    """With statistics as after a training."""
    with torch.no_grad():
        for values in (norm.running_mean, norm.weight, norm.bias):
            values.copy_(torch.randn_like(values))
        norm.running_var.uniform_(0.5, 2)
    return norm


CAUSAL = {
    "pad": (nn.Conv1d(3, 4, 3), lambda conv, x: conv(F.pad(x, (2, 0)))),
    "chomp": (nn.Conv1d(3, 4, 3, padding=4, dilation=2), lambda conv, x: conv(x)[:, :, :-4]),
    "chomp by size": (nn.Conv1d(3, 4, 2, padding=1), lambda conv, x: conv(x)[:, :, : x.size(2)]),
    "depthwise": (nn.Conv1d(3, 6, 3, groups=3), lambda conv, x: conv(F.pad(x, (2, 0)))),
    "pointwise": (nn.Conv1d(3, 4, 1), lambda conv, x: conv(x)),
    "zeros before": (
        nn.Conv1d(3, 4, 3),
        lambda conv, x: conv(torch.cat([x.new_zeros(x.size(0), 3, 2), x], dim=2)),
    ),
    "valid": (nn.Conv1d(3, 4, 3), lambda conv, x: conv(x)),
    "modules": (
        nn.Sequential(nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(3, 4, 3, bias=False)),
        lambda conv, x: conv(x),
    ),
    "strided": (nn.Conv1d(3, 4, 3, stride=2), lambda conv, x: conv(x)),
    "max pool": (
        nn.Sequential(nn.Conv1d(3, 4, 1), nn.ReLU(), nn.MaxPool1d(2)),
        lambda conv, x: conv(x),
    ),
    "average pool": (
        nn.Sequential(nn.Conv1d(3, 4, 1), nn.AvgPool1d(3, stride=1)),
        lambda conv, x: conv(x),
    ),
    "F.max_pool1d": (nn.Conv1d(3, 4, 2), lambda conv, x: F.max_pool1d(conv(x), 3, 2)),
    "F.avg_pool1d": (nn.Conv1d(3, 4, 2), lambda conv, x: F.avg_pool1d(conv(x), kernel_size=4)),
    "batch norm": (
        nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.ReLU()),
        lambda conv, x: conv(x),
    ),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_convolution_then_lstm(name):
    """The last step, for two lengths that a stride treats differently."""
    conv, run = CAUSAL[name]
    for part in conv.modules():
        if isinstance(part, nn.BatchNorm1d):
            settled(part)
    width = {"depthwise": 6}.get(name, 4)
    net = Net(
        lambda net, x: net.fc(net.rnn(run(net.conv, x.transpose(1, 2)).transpose(1, 2))[0][:, -1]),
        conv=conv,
        rnn=nn.LSTM(width, 5, batch_first=True),
        fc=nn.Linear(5, 2),
    )
    for n_steps in (22, 23):
        graph = checked(net, n_steps=n_steps)
    assert Lstm in kinds(graph) and (Window in kinds(graph)) == (
        name not in ("pointwise", "batch norm")
    )


def test_a_readout_that_depends_on_the_length_needs_a_window():
    net = Net(
        lambda net, x: net.rnn(net.conv(x.mT).mT)[0][:, -1],
        conv=nn.Conv1d(3, 4, 3, stride=5, padding=1),
        rnn=nn.GRU(4, 5, batch_first=True),
    )
    graph = import_torch(net).graph
    assert graph.needs_window
    with pytest.raises(
        QuantizeError, match=r"layer 'conv' looks ahead.*mode='slide:T' or 'tumble:T'"
    ):
        stepwell.convert(graph, np.ones((8, 20, 3)))


def looking_ahead() -> dict:
    """[B, 3, T] -> [B, 4, T']"""
    return {
        "same": (nn.Conv1d(3, 4, 4, padding="same"), lambda conv, x: conv(x)),
        "both sides": (nn.Conv1d(3, 4, 3, padding=2, dilation=2), lambda conv, x: conv(x)),
        "more than the span sees": (nn.Conv1d(3, 4, 3, padding=2), lambda conv, x: conv(x)),
        "strided": (nn.Conv1d(3, 4, 5, stride=2, padding=2), lambda conv, x: conv(x)),
        "two": (
            nn.Sequential(
                nn.Conv1d(3, 5, 3, padding=1),
                nn.ReLU(),
                settled(nn.BatchNorm1d(5)),
                nn.Conv1d(5, 4, 5, padding=2),
            ),
            lambda conv, x: conv(x),
        ),
        "then pooled": (
            nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.MaxPool1d(2)),
            lambda conv, x: conv(x),
        ),
        "padded by hand": (nn.Conv1d(3, 4, 4), lambda conv, x: conv(F.pad(x, (1, 2)))),
        "cut by hand": (nn.Conv1d(3, 4, 5, padding=4), lambda conv, x: conv(x)[:, :, :-2]),
        "two, then cut": (
            nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding=1)),
            lambda conv, x: F.pad(conv(x), (0, -1)),
        ),
        "largest": (
            nn.Sequential(nn.Conv1d(3, 4, 1), nn.MaxPool1d(3, 1, padding=1)),
            lambda conv, x: conv(x),
        ),
        "largest, dilated": (
            nn.Sequential(nn.Conv1d(3, 4, 1), nn.MaxPool1d(3, 2, 1, dilation=2)),
            lambda conv, x: conv(x),
        ),
        "largest among zeros": (
            nn.Conv1d(3, 4, 1),
            lambda conv, x: F.max_pool1d(F.pad(conv(x), (1, 1)), 3, 1),
        ),
        "mean with zeros": (
            nn.Sequential(nn.Conv1d(3, 4, 1), nn.AvgPool1d(3, 2, 1)),
            lambda conv, x: conv(x),
        ),
        "mean": (
            nn.Sequential(nn.Conv1d(3, 4, 1), nn.AvgPool1d(4, 2, 2, count_include_pad=False)),
            lambda conv, x: conv(x),
        ),
    }


@pytest.mark.parametrize("n_steps", [12, 13])
@pytest.mark.parametrize("name", looking_ahead())
def test_what_looks_ahead_is_exact_in_windows(name, n_steps):
    conv, run = looking_ahead()[name]
    net = Net(
        lambda net, x: net.fc(net.rnn(run(net.conv, x.transpose(1, 2)).transpose(1, 2))[0][:, -1]),
        conv=conv,
        rnn=nn.LSTM(4, 5, batch_first=True),
        fc=nn.Linear(5, 2),
    )
    graph = import_torch(net).graph
    assert graph.needs_window
    rng = np.random.default_rng(3)
    calib, x = rng.normal(size=(8, 40, 3)), rng.normal(size=(30, 3))
    windows = np.stack([x[at : at + n_steps] for at in range(31 - n_steps)])
    expected = net.eval()(torch.tensor(windows, dtype=torch.float32)).detach().numpy()
    for text in (f"slide:{n_steps}", f"tumble:{n_steps}", f"stagger:{n_steps}/{n_steps}"):
        try:
            model = stepwell.convert(graph, calib, mode=text)
        except QuantizeError as error:
            assert not text.startswith("slide") and "none at the window's last" in str(error)
            continue
        ends = [
            t
            for t in range(n_steps - 1, 30)
            if not text.startswith("tumble") or (t + 1) % n_steps == 0
        ]
        wanted = expected[[t + 1 - n_steps for t in ends]]
        assert np.abs(run_in_mode(graph, model.mode, x)[ends] - wanted).max() < 1e-5
        y = model.stream().run(x)
        assert np.array_equal(y, model.reference().run(x))
        assert sqnr_db(wanted, y[ends]) > 40


def test_a_tensor_and_the_same_one_cut():
    """What is cut of a convolution's padding is not cut of the convolution for those that read all
    of it.
    """

    def run(net, x):
        whole = net.conv(x.mT)
        cut = whole[:, :, :-2]
        return net.rnn((cut if net.cuts else whole).mT)[0][:, -1]

    for cuts, lag in ((False, 2), (True, 0)):
        net = Net(run, conv=nn.Conv1d(3, 4, 3, padding=2), rnn=nn.GRU(4, 5, batch_first=True))
        net.cuts = cuts
        graph = import_torch(net).graph
        assert graph.lags[-1] == lag and [layer.name for layer in graph.layers] == [
            "conv.window",
            "conv",
            "rnn_l0",
        ]


def test_convolution_on_channels_first_input():
    net = Net(
        lambda net, x: net.rnn(net.conv(F.pad(x, (3, 0))).permute(2, 0, 1))[1][-1],
        conv=nn.Conv1d(3, 4, 4),
        rnn=nn.GRU(4, 5),
    )
    graph = import_torch(net).graph
    assert kinds(graph) == [Window, Dense, Gru] and graph.readout == "last"


def test_centred_convolution_at_every_step_is_late():
    net = Net(
        lambda net, x: net.rnn(net.conv(x.mT).mT)[0],
        conv=nn.Conv1d(3, 4, 5, padding="same"),
        rnn=nn.GRU(4, 5, batch_first=True),
    )
    imported = import_torch(net)
    assert imported.graph.timing[-1].first == 2
    assert "2 steps late" in imported.graph.notes[0]


def test_convolution_after_lstm():
    net = Net(
        lambda net, x: net.conv(F.pad(net.rnn(x)[0].mT, (2, 0))).mT,
        conv=nn.Conv1d(5, 4, 3),
        rnn=nn.GRU(3, 5, batch_first=True),
    )
    assert kinds(checked(net)) == [Gru, Window, Dense]


def test_norms():
    net = Net(
        lambda net, x: net.bn(net.norm(net.rnn(x)[0]).transpose(1, 2)).transpose(1, 2),
        rnn=nn.GRU(3, 4, batch_first=True),
        norm=nn.LayerNorm(4),
        bn=settled(nn.BatchNorm1d(4)),
    )
    assert kinds(checked(net)) == [Gru, LayerNorm, Dense]


@pytest.mark.parametrize("batch_first", [True, False])
def test_embedding(batch_first):
    net = Net(
        lambda net, x: net.fc(net.rnn(net.table(x))[1][0][-1]),
        table=nn.Embedding(11, 4, padding_idx=0),
        rnn=nn.LSTM(4, 5, batch_first=batch_first),
        fc=nn.Linear(5, 2),
    )
    imported = import_torch(net)
    assert kinds(imported.graph) == [Embedding, Lstm, Dense] and imported.graph.n_in == 1
    tokens = torch.randint(0, 11, (3, 9))
    y = net(tokens if batch_first else tokens.T).detach().numpy()
    np.testing.assert_allclose(
        FloatStream(imported.graph).run(tokens.numpy()[..., None])[:, -1], y, atol=1e-5
    )


# ---- windows of a fixed length ----


def attention_net(run):
    return Net(
        run,
        rnn=nn.GRU(N_IN, UNITS, batch_first=True),
        score=nn.Linear(UNITS, 1),
        query=nn.Linear(UNITS, UNITS),
        keys=nn.Linear(UNITS, UNITS, bias=False),
        fc=nn.Linear(UNITS, 2),
        both=nn.Linear(2 * UNITS, 2),
    )


def pooled(net, x):
    out, _ = net.rnn(x)
    weights = torch.softmax(net.score(torch.tanh(net.query(out))), dim=1)
    return net.fc((weights * out).sum(dim=1))


def pooled_by_bmm(net, x):
    out, _ = net.rnn(x)
    weights = F.softmax(net.score(out).squeeze(-1), dim=1)
    return net.fc(torch.bmm(weights.unsqueeze(1), out).squeeze(1))


def pooled_by_transposed_bmm(net, x):
    out, _ = net.rnn(x)
    weights = F.softmax(net.score(out), dim=1)
    return net.fc(torch.matmul(out.transpose(1, 2), weights).squeeze(2))


def luong(net, x):
    out, h = net.rnn(x)
    scores = torch.bmm(out, net.query(h[-1]).unsqueeze(2)).squeeze(2) / UNITS**0.5
    context = torch.bmm(F.softmax(scores, dim=1).unsqueeze(1), out).squeeze(1)
    return net.both(torch.cat([context, h[-1]], dim=1))


def luong_by_product(net, x):
    out, h = net.rnn(x)
    weights = ((h[-1].unsqueeze(1) * net.keys(out)).sum(-1) * 0.3).softmax(1)
    return net.fc((weights.unsqueeze(-1) * out).sum(1))


def luong_by_matmul(net, x):
    out, h = net.rnn(x)
    weights = torch.softmax(h[-1].unsqueeze(1) @ net.keys(out).transpose(1, 2), dim=-1)
    return net.fc((weights @ out).squeeze(1))


def bahdanau(net, x):
    out, h = net.rnn(x)
    scores = net.score(torch.tanh(net.query(h[-1]).unsqueeze(1) + net.keys(out)))
    return net.fc((out * torch.softmax(scores, dim=1)).sum(1))


ATTENTIONS = {
    pooled: "score",
    pooled_by_bmm: "score",
    pooled_by_transposed_bmm: "score",
    luong: "dot",
    luong_by_product: "dot",
    luong_by_matmul: "dot",
    bahdanau: "additive",
}


@pytest.mark.parametrize("run", ATTENTIONS, ids=lambda run: run.__name__)
def test_attention(run):
    graph = checked(attention_net(run), steps=20)
    (layer,) = [layer for layer in graph.layers if isinstance(layer, Attention)]
    assert (layer.form, layer.steps, graph.readout) == (ATTENTIONS[run], 20, "last")
    with pytest.raises(ImportRefused, match="attends to the whole window: give its length, steps="):
        import_torch(attention_net(run))


def test_attention_after_pooling_counts_its_own_steps():
    def run(net, x):
        out, _ = net.rnn(F.max_pool1d(x.mT, 2).mT)
        return net.fc((torch.softmax(net.score(out), dim=1) * out).sum(dim=1))

    graph = checked(attention_net(run), steps=20)
    assert [layer.steps for layer in graph.layers if isinstance(layer, Attention)] == [10]


FIXED = {
    "mean": lambda net, x: net.fc(net.rnn(x)[0].mean(dim=1)),
    "max": lambda net, x: net.fc(net.rnn(x)[0].max(1)[0]),
    "amax": lambda net, x: net.fc(torch.amax(net.rnn(x)[0], dim=1)),
    "adaptive": lambda net, x: net.fc(F.adaptive_avg_pool1d(net.rnn(x)[0].mT, 1).squeeze(-1)),
    "adaptive max": lambda net, x: net.fc(net.pool(net.rnn(x)[0].mT).flatten(1)),
}


@pytest.mark.parametrize("name", FIXED)
def test_pooling_over_a_whole_window(name):
    net = Net(
        FIXED[name],
        rnn=nn.GRU(3, 4, batch_first=True),
        fc=nn.Linear(4, 2),
        pool=nn.AdaptiveMaxPool1d(1),
    )
    graph = checked(net, steps=12)
    assert Window in kinds(graph) and (MaxPool in kinds(graph)) == ("max" in name)
    with pytest.raises(
        ImportRefused,
        match=r"needs windows of a fixed length: give it \(steps=\), or read out the last step",
    ):
        import_torch(net)


@pytest.mark.parametrize("flat", [lambda y: y.reshape(y.size(0), -1), lambda y: y.mT.flatten(1)])
def test_linear_over_a_flattened_window(flat):
    net = Net(
        lambda net, x: net.fc(flat(net.rnn(x)[0])),
        rnn=nn.GRU(3, 4, batch_first=True),
        fc=nn.Linear(48, 2),
    )
    assert kinds(checked(net, steps=12)) == [Gru, Window, Dense]
    with pytest.raises(
        ImportRefused,
        match=r"fc \(Linear\): reads a flattened window of 12 steps at once.* steps=12",
    ):
        import_torch(net)


# ---- the user's module stays as it is; kinds of weights ----


def test_the_module_is_not_changed():
    module = Net(
        last_step, rnn=nn.LSTM(3, 4, 2, batch_first=True, dropout=0.5), fc=nn.Linear(4, 2)
    ).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    random = torch.get_rng_state()
    import_torch(module)
    assert module.training and module.rnn.training
    assert torch.get_default_dtype() == torch.float32 and torch.equal(torch.get_rng_state(), random)
    for name, value in module.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, before[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_converted_and_said(dtype):
    graph = import_torch(nn.GRU(3, 4).to(dtype)).graph
    assert str(dtype).removeprefix("torch.") in graph.notes[0]


def test_provenance():
    module = Net(last_step, rnn=nn.LSTM(3, 4, batch_first=True), fc=nn.Linear(4, 2))
    source = import_torch(module, verify=False).graph.source
    assert (
        source.file == "Net" and source.producer.startswith("torch ") and len(source.sha256) == 64
    )
    with torch.no_grad():
        module.fc.bias += 1
    assert import_torch(module, verify=False).graph.source.sha256 != source.sha256


def test_weight_norm_and_compiled_modules():
    def build():
        return Net(
            last_step,
            rnn=nn.GRU(3, 4, batch_first=True),
            fc=nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)),
        )

    checked(build())
    assert import_torch(torch.compile(build()))
    assert import_torch(nn.DataParallel(build()))


class OwnLstm(nn.LSTM):
    """A subclass that computes what its base does."""


def test_subclasses():
    assert kinds(checked(OwnLstm(3, 4, batch_first=True))) == [Lstm]


def test_nested_modules_are_named():
    inner = Net(lambda net, x: net.rnn(x)[0], rnn=nn.GRU(3, 4, batch_first=True))
    graph = checked(
        Net(
            lambda net, x: net.head(net.encoder(x)),
            encoder=inner,
            head=nn.Sequential(nn.Linear(4, 2)),
        )
    )
    assert [layer.name for layer in graph.layers] == ["encoder.rnn_l0", "head.0"]


# ---- refusals ----


def refused_nets():
    def with_rnn(run, **more):
        return Net(run, rnn=nn.GRU(3, 4, batch_first=True), **more)

    def branch(net, x):
        return net.rnn(x)[0] if x[:, -1] else x

    def loop(net, x):
        h = torch.zeros(x.size(0), 4)
        for t in range(x.size(1)):
            h = net.cell(x[:, t], h)
        return h

    def decoder(net, x):
        _, h = net.rnn(x)
        return net.rnn(x, h)[0]

    nan = nn.GRU(3, 4)
    with torch.no_grad():
        nan.weight_ih_l0[1, 1] = np.nan
    return {
        "no recurrent layer": (
            nn.Sequential(nn.Linear(3, 4)),
            "needs at least one recurrent layer",
        ),
        "log softmax": (
            with_rnn(lambda net, x: net.end(net.rnn(x)[0]), end=nn.LogSoftmax(-1)),
            r"end \(LogSoftmax\): end the model in softmax",
        ),
        "F.log_softmax": (
            with_rnn(lambda net, x: F.log_softmax(net.rnn(x)[0], -1)),
            r"'log_softmax'.*end the model in softmax",
        ),
        "conv2d": (
            with_rnn(
                lambda net, x: net.head(net.rnn(x)[0].unsqueeze(1)),
                head=nn.Sequential(nn.Conv2d(1, 1, 3)),
            ),
            r"head\.0 \(Conv2d\): convolutions run along time only",
        ),
        "multihead": (
            with_rnn(
                lambda net, x: net.att(*[net.rnn(x)[0]] * 3)[0],
                att=nn.MultiheadAttention(4, 2, batch_first=True),
            ),
            r"att \(MultiheadAttention\): attention of several heads",
        ),
        "transformer": (
            with_rnn(
                lambda net, x: net.enc(net.rnn(x)[0]),
                enc=nn.TransformerEncoderLayer(4, 2, batch_first=True),
            ),
            r"enc \(TransformerEncoderLayer\)",
        ),
        "control flow": (with_rnn(branch), "control flow depends on the values"),
        "comparison": (
            with_rnn(lambda net, x: net.rnn(x)[0] > 0),
            r"'gt' .*comparisons and control flow on data",
        ),
        "second input": (
            StepNet(lambda net, x, y: net.rnn(x + y)[0], rnn=nn.GRU(3, 4)),
            "argument 'state', which is neither",
        ),
        "state of both directions": (
            StepNet(lambda net, x, h: net.rnn(x, h), rnn=nn.GRU(3, 4, bidirectional=True)),
            "no state can be handed on",
        ),
        "loop over cells": (
            Net(loop, cell=nn.GRUCell(3, 4)),
            "takes timestep 0 out of the sequence",
        ),
        "decoder": (with_rnn(decoder), "encoder-decoders cannot be streamed"),
        "cell without state": (
            Net(lambda net, x: net.cell(x), cell=nn.GRUCell(3, 4)),
            r"cell \(GRUCell\): a cell takes one step",
        ),
        "cell state read": (
            Net(lambda net, x: net.rnn(x)[1][1][-1], rnn=nn.LSTM(3, 4, batch_first=True)),
            "reads a cell state",
        ),
        "first step": (with_rnn(lambda net, x: net.rnn(x)[0][:, 0]), "takes timestep 0"),
        "strided time": (with_rnn(lambda net, x: net.rnn(x)[0][:, ::2]), "only contiguous"),
        "warm-up cut": (
            with_rnn(lambda net, x: net.rnn(x)[0][:, 3:]),
            "a stream reads every step or the last one",
        ),
        "end cut": (
            with_rnn(lambda net, x: net.rnn(x)[0][:, :-1]),
            "a stream reads every step or the last one",
        ),
        "flip": (
            with_rnn(lambda net, x: net.rnn(x.flip(1))[0]),
            "reversed time cannot be streamed",
        ),
        "softmax over batch": (
            with_rnn(lambda net, x: F.softmax(net.rnn(x)[0], 0)),
            "not the one of the features",
        ),
        "division by data": (with_rnn(lambda net, x: 1 / net.rnn(x)[0]), "divides by data"),
        "zeros that nothing sees": (
            with_rnn(
                lambda net, x: net.rnn(net.conv(F.pad(x.mT, (0, 3))).mT)[0], conv=nn.Conv1d(3, 3, 3)
            ),
            "pads 0 steps before the sequence, 3 after it, and looks at 3",
        ),
        "zeros behind a cell": (
            with_rnn(lambda net, x: net.rnn(F.pad(x, (0, 0, 0, 2)))[0]),
            "only a convolution or a pooling can take them",
        ),
        "padded twice": (
            with_rnn(lambda net, x: net.rnn(F.max_pool1d(F.pad(x.mT, (0, 1)), 3, 1, 1).mT)[0]),
            "pad once",
        ),
        "reflected padding": (
            Net(
                lambda net, x: net.rnn(net.conv(x.mT).mT)[0],
                conv=nn.Conv1d(3, 3, 3, padding=1, padding_mode="reflect"),
                rnn=nn.GRU(3, 4, batch_first=True),
            ),
            r"conv \(Conv1d\): padding_mode 'reflect'",
        ),
        "statistics of the batch": (
            with_rnn(
                lambda net, x: net.bn(net.rnn(x)[0].mT),
                bn=nn.BatchNorm1d(4, track_running_stats=False),
            ),
            "track_running_stats=True",
        ),
        "many slopes": (
            with_rnn(lambda net, x: net.act(net.rnn(x)[0][:, -1]), act=nn.PReLU(4)),
            "use one",
        ),
        "mixed readout": (
            with_rnn(lambda net, x: torch.cat([net.rnn(x)[0], x], 1)),
            "is not the one of the features",
        ),
        "packed": (
            with_rnn(
                lambda net, x: net.rnn(
                    nn.utils.rnn.pack_padded_sequence(x, [3, 2], batch_first=True)
                )[0]
            ),
            "pack_padded_sequence|torch.onnx.export",
        ),
        "nan": (nan, "weight_ih_l0 holds NaN or infinity"),
        "complex": (
            Net(lambda net, x: x, weights=nn.Parameter(torch.zeros(3, dtype=torch.complex64))),
            "complex64",
        ),
        "lazy": (nn.Sequential(nn.LazyLinear(3), nn.GRU(3, 4)), "has no values yet"),
        "meta": (nn.GRU(3, 4, device="meta"), "meta device"),
        "all final states": (
            Net(lambda net, x: net.rnn(x)[1], rnn=nn.GRU(3, 4, 2)),
            r"return one of them, h_n\[-1\]",
        ),
        "module made in forward": (
            with_rnn(lambda net, x: nn.GRU(3, 4)(x)[0]),
            "is not installed|torch.onnx.export",
        ),
        "nothing": (with_rnn(lambda net, x: None), "returns nothing that depends on its input"),
        "raises": (with_rnn(lambda net, x: [][1]), "IndexError.*torch.onnx.export"),
        "asserts": (
            with_rnn(lambda net, x: (_ for _ in ()).throw(AssertionError("own"))),
            "AssertionError: own",
        ),
        "no arguments": (
            type("Mute", (nn.Module,), {"forward": lambda self: None})(),
            "returns nothing",
        ),
        "any arguments": (
            type("Any", (nn.Module,), {"forward": lambda self, *x: x[0]})(),
            "torch.onnx.export",
        ),
        "no forward": (nn.Module(), "torch.onnx.export"),
        "a cell written out": (
            StepNet(
                lambda net, x, h: torch.tanh(net.a(x) + net.b(h)),
                a=nn.Linear(3, 4),
                b=nn.Linear(4, 4),
            ),
            r"b \(Linear\): reads argument 'state'.* write cells as nn.LSTMCell",
        ),
        "two inputs to a memory": (
            with_rnn(lambda net, x: net.rnn(net.table(x[..., 0]))[0], table=nn.Embedding(5, 3)),
            "an embedding must read the model's input",
        ),
        "not a module": ("model.pt", "expected a torch.nn.Module"),
        "a class": (nn.LSTM, "expected a torch.nn.Module"),
        "weights only": (nn.LSTM(3, 4).state_dict(), "weights without a module"),
    }


@pytest.mark.parametrize("name", refused_nets())
def test_refusals(name):
    module, reason = refused_nets()[name]
    with pytest.raises(ImportRefused, match=reason):
        import_torch(module)


def test_scripted_modules_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.GRU(3, 4))
    with pytest.raises(ImportRefused, match=r"before torch\.jit"):
        import_torch(scripted)


def test_in_place_changes_are_found_by_the_replay():
    def run(net, x):
        y = net.fc(net.rnn(x)[0])
        z = F.relu(y, inplace=True)
        return y + z

    with pytest.raises(ImportRefused, match=r"differs from the module.*in place"):
        import_torch(Net(run, rnn=nn.GRU(3, 4, batch_first=True), fc=nn.Linear(4, 4)))


@pytest.mark.parametrize("options", [{"steps": 0}, {"steps": 2.5}, {"n_in": -1}, {"n_in": True}])
def test_bad_options(options):
    with pytest.raises(ImportRefused, match="must be a positive integer"):
        import_torch(nn.GRU(3, 4), **options)


def test_torch_is_optional():
    """The module can be imported, and says what to install, where torch is missing."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from stepwell.importer.torch import import_torch\n"
        "from stepwell.errors import ImportRefused\n"
        "try: import_torch(None)\n"
        "except ImportRefused as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install torch" in run.stdout


# ---- several outputs ----


@dataclass
class Policy:
    mu: torch.Tensor
    value: torch.Tensor
    state: tuple


class Heads(NamedTuple):
    mu: torch.Tensor
    value: torch.Tensor


RESULTS = {
    "tuple": (lambda a, b, state: (a, b), ["output0", "output1"]),
    "list with the state between": (lambda a, b, state: [a, state, b], ["output0", "output1"]),
    "namedtuple": (lambda a, b, state: Heads(a, b), ["mu", "value"]),
    "dataclass": (lambda a, b, state: Policy(a, b, state), ["mu", "value"]),
    "dict": (lambda a, b, state: {"value": b, "mu": a, "h": state[0]}, ["value", "mu"]),
    "nested": (lambda a, b, state: {"heads": (a, {"v": b})}, ["heads.0", "heads.1.v"]),
}


def two_heads(result) -> nn.Module:
    def run(net, x):
        y, state = net.rnn(x)
        return result(net.mu(y), net.value(y), state)

    return Net(run, rnn=nn.LSTM(3, 4, batch_first=True), mu=nn.Linear(4, 2), value=nn.Linear(4, 1))


@pytest.mark.parametrize("name", RESULTS)
def test_results_of_forward_stand_side_by_side(name):
    result, names = RESULTS[name]
    imported = import_torch(two_heads(result))
    assert [
        output.name for output in imported.graph.outputs
    ] == names and imported.replay.error <= LIMIT
    assert sum(output.size for output in imported.graph.outputs) == imported.graph.n_out == 3
    turned = import_torch(two_heads(result), outputs=names[::-1])
    assert [output.name for output in turned.graph.outputs] == names[
        ::-1
    ] and turned.replay.error <= LIMIT
    assert (
        import_torch(two_heads(result), outputs=names[1]).graph.outputs
        == imported.graph.outputs[1:]
    )


def test_a_lone_output_needs_no_name():
    assert import_torch(nn.LSTM(3, 4)).graph.outputs == ()


def test_a_parameter_among_the_results():
    net = two_heads(lambda a, b, state: (a, torch.full((2,), 0.5), b))
    graph = import_torch(net).graph
    y = FloatStream(graph).run(np.random.default_rng(0).normal(size=(1, 9, 3)))
    assert [output.size for output in graph.outputs] == [2, 2, 1] and (y[..., 2:4] == 0.5).all()
    with pytest.raises(ImportRefused, match="'output1' is a constant"):
        import_torch(net, outputs="output1")


def test_results_that_cannot_be_streamed_do_not_matter_when_others_are_wanted():
    net = two_heads(lambda a, b, state: {"total": a.cumsum(1), "value": b})
    with pytest.raises(
        ImportRefused, match=r"cumsum.*'value' converts by itself: choose with --outputs NAME"
    ):
        import_torch(net)
    assert import_torch(net, outputs=["value"]).replay.error <= LIMIT
    with pytest.raises(ImportRefused, match="adds up without bound"):
        import_torch(net, outputs="total")


def test_attributes_that_cannot_be_printed():
    def run(net, x):
        y, _ = net.get_submodule("rnn\t\u202e")(x)
        return {"mu\x1b[2J": net.mu(y), "gr\u00f6\u00dfe \U0001f600": net.value(y)}

    net = Net(
        run,
        mu=nn.Linear(4, 2),
        value=nn.Linear(4, 1),
        **{"rnn\t\u202e": nn.LSTM(3, 4, batch_first=True)},
    )
    graph = import_torch(net).graph
    assert [output.name for output in graph.outputs] == ["mu\\x1b[2J", "gr\u00f6\u00dfe \U0001f600"]
    assert all(layer.name.isprintable() for layer in graph.layers)
