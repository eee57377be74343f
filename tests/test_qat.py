"""Fine-tuning: what is trained is bit for bit what runs, and it recovers what 4-bit weights cost."""

import numpy as np
import pytest
import stepwell
from conftest import DEMO
from shapes import graph_of, random_dense, random_lstm, sequences_for
from stepwell.errors import QuantizeError
from stepwell.graph import Graph
from stepwell.integer.fixed import softmax
from stepwell.integer.precision import PRECISIONS
from stepwell.metrics import sqnr_db
from stepwell.stream import FloatStream

torch = pytest.importorskip("torch", reason="fine-tuning needs torch")
from stepwell import qat  # noqa: E402 - it imports torch

CHAINS = [
    "lstm dense",
    "two lstm, three dense",
    "softmax",
    "gru",
    "relu between",
    "dense lstm dense",
    "tanh, sigmoid after lstm",
]


def trained(student, x, y, steps: int, rate: float = 1e-3):
    optimizer = torch.optim.Adam(student.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = ((student(x) - y) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def assert_same_bits(student) -> None:
    model = student.model()
    x_q = np.random.default_rng(1).integers(-32768, 32768, (2, 40, model.n_in)).astype(np.int16)
    x_q[1] //= 50
    y = student.codes(torch.from_numpy(x_q.astype(np.float64))).detach().numpy()
    y = softmax(y.astype(np.int64)) if model.layers[-1].activation == "softmax" else y
    assert np.array_equal(y, [model.stream().run_q(x) for x in x_q])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CHAINS)
def test_what_is_trained_is_what_runs(name, precision):
    graph = graph_of(name)
    x = sequences_for(graph, 8, 8, 30)
    student = qat.prepare(graph, x, precision=precision)
    assert_same_bits(student)
    before = student.model().blob
    target = torch.from_numpy(np.random.default_rng(2).normal(size=(8, 30, graph.n_out)))
    trained(student, torch.from_numpy(x), target, 5, 1e-2)
    assert_same_bits(student)
    assert student.model().blob != before and student.model().notes["fine_tuned"]


def test_every_parameter_learns():
    graph = graph_of("gru")
    x = torch.from_numpy(sequences_for(graph, 8, 8, 30))
    student = qat.prepare(graph, x.numpy(), precision="w4a16")
    (student(x) ** 2).mean().backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_training_brings_the_integers_closer():
    rng = np.random.default_rng(1)
    graph = Graph((random_lstm(rng, 4, 16), random_dense(rng, 16, 2)))
    x = sequences_for(graph, 8, 32, 40)
    y = FloatStream(graph).run(x)
    student = qat.prepare(graph, x, precision="w4a16")
    before = sqnr_db(y, student.model().reference().run(x))
    trained(student, torch.from_numpy(x), torch.from_numpy(y), 100, 1e-4)
    assert sqnr_db(y, student.model().reference().run(x)) > before + 1


def test_from_a_file_with_a_scaler(tmp_path):
    calib = np.load(DEMO / "turbofan_calib.npz")["x"][:8].astype(np.float64)
    scaler = {"mean": np.zeros(14), "std": np.full(14, 0.1)}
    student = qat.prepare(
        DEMO / "turbofan.onnx", calib * 0.1, precision="w4a16", scaler=scaler, name="small"
    )
    model = student.model()
    assert model.name == "small" and model.info()["precision"] == "w4a16"
    y = student(torch.from_numpy(calib * 0.1)).detach().numpy()
    assert np.array_equal(y, model.reference().run(calib * 0.1))
    model.save(tmp_path / "m.stw")
    assert stepwell.load(tmp_path / "m.stw").blob == model.blob


@pytest.mark.parametrize(
    "name", ["peephole", "residual", "causal conv", "rnn", "groups", "projection"]
)
def test_other_layers_are_refused_by_name(name):
    graph = graph_of(name)
    with pytest.raises(QuantizeError, match="fine-tuning knows"):
        qat.prepare(graph, sequences_for(graph, 8, 8, 30))


def test_rows_trained_beyond_the_proof_are_refused():
    graph = graph_of("lstm dense")
    student = qat.prepare(graph, sequences_for(graph, 8, 8, 30))
    with torch.no_grad():
        student.layers[1].bias.value += 1e9
    with pytest.raises(
        QuantizeError, match=r"layer 'dense32x1' row 0 was trained beyond the overflow proof"
    ):
        student.model()
