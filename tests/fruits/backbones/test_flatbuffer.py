import numpy as np
import pytest

from fruits.backbones.flatbuffer import ALIGNMENT, Graph
from tests.tiny_backbone import SIDE, WIDTH, tiny_backbone, tiny_flatbuffer

pytestmark = pytest.mark.jobs

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8)
WEIGHTS, BIAS = RNG.normal(size=(6, WIDTH)) / 100, RNG.normal(size=6)


@pytest.fixture
def graph():
    return Graph(tiny_flatbuffer())


@pytest.fixture(scope="module")
def features():
    return tiny_backbone().features(PIXELS[0]).astype(np.float64)


def run(flatbuffer, pixels=PIXELS):
    """The outputs by name, as an app gets them."""
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_content=flatbuffer, num_threads=1).get_signature_runner()(pixels=pixels)


def test_the_features_are_those_of_the_backbone_bit_for_bit(graph, features):
    scores = graph.fully_connected("scores", graph.output, WEIGHTS, BIAS)
    outputs = run(graph.packed([graph.output, scores], {}))
    assert outputs["features"][0].tolist() == features.tolist()


def test_layers_compute_what_they_say(graph, features):
    scores = graph.fully_connected("scores", graph.output, WEIGHTS, BIAS)
    plain = graph.fully_connected("plain", graph.output, WEIGHTS)
    outputs = run(
        graph.packed(
            [
                scores,
                plain,
                graph.softmax("probabilities", scores),
                graph.directions("direction", scores),
                graph.greatest("greatest", scores, 2),
            ],
            {},
        )
    )
    expected = WEIGHTS @ features + BIAS
    np.testing.assert_allclose(outputs["scores"][0], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs["plain"][0], expected - BIAS, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs["probabilities"][0], np.exp(expected) / np.exp(expected).sum(), rtol=1e-4)
    np.testing.assert_allclose(outputs["direction"][0], expected / np.linalg.norm(expected), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs["greatest"][0], expected.reshape(2, 3).max(axis=1), rtol=1e-5)


def test_outputs_come_in_the_given_order(graph):
    from ai_edge_litert.interpreter import Interpreter

    one, other = (graph.fully_connected(name, graph.output, WEIGHTS[:n]) for name, n in (("z", 2), ("a", 3)))
    interpreter = Interpreter(model_content=graph.packed([one, other], {}))
    assert [tuple(detail["shape"]) for detail in interpreter.get_output_details()] == [(1, 2), (1, 3)]
    assert [detail["name"] for detail in interpreter.get_output_details()] == ["z", "a"]


def test_all_data_are_aligned_and_metadata_are_kept(graph):
    from ai_edge_litert import schema_py_generated as schema

    scores = graph.fully_connected("scores", graph.output, WEIGHTS[:, :], BIAS)
    packed = graph.packed([scores], {"ONE": b"1", "TWO": b"22222"})
    model = schema.Model.GetRootAs(packed, 0)
    assert packed[4:8] == b"TFL3"
    starts = [model.Buffers(n)._tab for n in range(model.BuffersLength())]
    assert {tab.Vector(tab.Offset(4)) % ALIGNMENT for tab in starts if tab.Offset(4)} == {0}
    entries = {model.Metadata(n).Name(): model.Metadata(n).Buffer() for n in range(model.MetadataLength())}
    data = {name.decode(): model.Buffers(number).DataAsNumpy().tobytes() for name, number in entries.items()}
    assert (data["ONE"], data["TWO"]) == (b"1", b"22222")
    assert data["min_runtime_version"].rstrip(b"\0") == b"1.14.0"


def test_a_younger_runtime_that_the_backbone_needs_stays(graph):
    older = graph.packed([graph.output], {})
    for had, has in ((b"1.14.0", b"2.11.0"), (b"1.14.0", b"1.9.0\0")):
        again = Graph(older.replace(had, has)).packed([0], {})
        assert max(has, had, key=lambda text: [int(part) for part in text.rstrip(b"\0").split(b".")]) in again


def test_the_same_layers_give_the_same_bytes():
    def packed():
        graph = Graph(tiny_flatbuffer())
        return graph.packed([graph.softmax("p", graph.fully_connected("s", graph.output, WEIGHTS, BIAS))], {"A": b"a"})

    assert packed() == packed()
