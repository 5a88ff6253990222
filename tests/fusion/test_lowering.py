"""Marked norms, gates, activations and heads: what matches, what it becomes, and what must not."""

import marker_graphs
import numpy as np
import onnxruntime
import pytest
from marker_graphs import apply, context, deviation, graph

from rocline import custom_ops
from rocline.custom_ops.sample_token.rule import SamplingHead
from rocline.custom_ops.skip_rms_norm.rule import PutIn as Norm
from rocline.custom_ops.swi_glu.rule import RULES as GATES
from rocline.export.passes.activations import Activations
from rocline.export.passes.gelu import Gelu
from rocline.export.passes.idle_nodes import IdleNodes, IdleReshapes
from rocline.export.passes.last_token import LastToken

ROWS, TOKENS, HIDDEN, WIDTH, WORDS = 3, 5, 12, 20, 1031
TOLERANCE = 1e-5
X = ["batch", "tokens", HIDDEN]


def randn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def hidden(seed=0):
    return randn(ROWS, TOKENS, HIDDEN, seed=seed), X


def norm(nodes, outputs, *, inputs=("a", "b"), shapes=None, constants=None):
    given = {name: hidden(at) for at, name in enumerate(inputs)} | (shapes or {})
    return graph(nodes, given, outputs, {"w": randn(HIDDEN, seed=7), **(constants or {})})


ADD = ("Add", ["a", "b"], ["s"])
NORM = ("RmsNorm", ["s", "w"], ["y"], {"epsilon": 1e-3})
LATER = ("Mul", ["s", "y"], ["z"])


@pytest.mark.parametrize(
    ("marked", "inputs", "outputs", "operators"),
    [
        (norm([ADD, NORM], {"y": X}), 3, 1, {}),
        (norm([ADD, NORM, LATER], {"z": X}), 3, 2, {"Mul": 1}),
        (norm([ADD, NORM], {"y": X, "s": X}), 3, 2, {}),
        (norm([ADD, (*LATER[:1], ["s", "s"], ["z"]), NORM], {"z": X, "y": X}), 3, 2, {"Mul": 1}),
        (norm([("RmsNorm", ["a", "w"], ["y"], {"epsilon": 1e-3})], {"y": X}, inputs=("a",)), 2, 1, {}),
        (norm([("Mul", ["a", "b"], ["s"]), NORM], {"y": X}), 2, 1, {"Mul": 1}),
        (
            norm(
                [ADD, ("Neg", ["v"], ["u"]), ("RmsNorm", ["s", "u"], ["y"], {"epsilon": 1e-3})],
                {"y": X},
                shapes={"v": (randn(HIDDEN), [HIDDEN])},
            ),
            3,
            1,
            {"Neg": 1},
        ),
    ],
    ids=["sum", "sum read later", "sum returned", "sum read before", "no sum", "another operator", "weight made later"],
)
def test_a_norm_takes_the_sum_before_it(marked, inputs, outputs, operators, tmp_path):
    lowered = apply(marked, Norm())
    (outcome,) = lowered.outcomes
    assert (outcome.made, outcome.matched, outcome.refused) == ("SkipRmsNorm", 1, ())
    assert lowered.operators == {"SkipRmsNorm": 1, **operators}
    (node,) = lowered.nodes("SkipRmsNorm")
    assert (len(node.inputs), len(node.outputs)) == (inputs, outputs)
    assert lowered.attributes("SkipRmsNorm") == {"epsilon": np.float32(1e-3)}
    assert max(deviation(marked, lowered, tmp_path).values()) <= TOLERANCE


@pytest.mark.parametrize(
    "marked",
    [
        norm([ADD, NORM], {"y": X}, inputs=("a",), constants={"b": randn(HIDDEN)}),
        norm([ADD, NORM], {"y": X}, inputs=("a",), shapes={"b": (randn(1, 1, HIDDEN), [1, 1, HIDDEN])}),
        norm([ADD, NORM], {"y": X}, inputs=("a",), shapes={"b": (randn(ROWS, TOKENS, HIDDEN), ["b", "t", HIDDEN])}),
    ],
    ids=["constant", "broadcast", "other symbols"],
)
def test_a_sum_of_other_shapes_stays(marked, tmp_path):
    lowered = apply(marked, Norm())
    assert lowered.operators == {"Add": 1, "SkipRmsNorm": 1}
    assert len(lowered.nodes("SkipRmsNorm")[0].inputs) == 2
    assert max(deviation(marked, lowered, tmp_path).values()) <= TOLERANCE


def gate(kind="silu", *, swapped=False, up="up", more=(), outputs=None, constants=None, inputs=None):
    product = ["active", up] if not swapped else [up, "active"]
    nodes = [
        ("MatMul", ["x", "w_gate"], ["gate"]),
        ("MatMul", ["x", "w_up"], ["up"]),
        ("Activation", ["gate"], ["active"], {"kind": kind}),
        ("Mul", product, ["y"]),
        *more,
    ]
    weights = {name: randn(HIDDEN, WIDTH, seed=at) for at, name in enumerate(("w_gate", "w_up"))}
    shape = {"y": ["batch", "tokens", WIDTH]}
    return graph(nodes, {"x": hidden(), **(inputs or {})}, outputs or shape, weights | (constants or {}))


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_gate_is_one_node_behind_one_projection(kind, swapped, tmp_path):
    marked = gate(kind, swapped=swapped)
    lowered = apply(marked, *GATES)
    assert [(outcome.made, outcome.matched, outcome.refused) for outcome in lowered.outcomes] == [("SwiGlu", 1, ())] * 2
    assert lowered.operators == {"MatMul": 1, "SwiGlu": 1}
    assert lowered.attributes("SwiGlu") == {"activation": kind}
    assert max(deviation(marked, lowered, tmp_path).values()) <= TOLERANCE


@pytest.mark.parametrize("first", ["gate", "up"])
def test_halves_of_one_projection_are_packed_in_their_order_only(first, tmp_path):
    names = ["gate", "up"] if first == "gate" else ["up", "gate"]
    marked = graph(
        [
            ("MatMul", ["x", "w"], ["both"]),
            ("Split", ["both", "sizes"], names, {"axis": -1}),
            ("Activation", ["gate"], ["active"], {"kind": "silu"}),
            ("Mul", ["active", "up"], ["y"]),
        ],
        {"x": hidden()},
        {"y": ["batch", "tokens", WIDTH]},
        {"w": randn(HIDDEN, 2 * WIDTH), "sizes": np.array([WIDTH, WIDTH])},
    )
    lowered = apply(marked, *GATES)
    gated, packed = lowered.outcomes
    assert gated.matched == 1
    assert lowered.operators == {"MatMul": 1, "SwiGlu": 1, **({} if first == "gate" else {"Split": 1})}
    assert [refusal.reason for refusal in packed.refused] == (
        [] if first == "gate" else ["what it reads are not all projections by a constant weight"]
    )
    assert max(deviation(marked, lowered, tmp_path).values()) <= TOLERANCE


def test_an_activation_used_elsewhere_is_no_gate():
    read = [("Neg", ["active"], ["z"])]
    shape = ["batch", "tokens", WIDTH]
    (gated, _) = apply(gate(more=read, outputs={"y": shape, "z": shape}), *GATES).outcomes
    assert (gated.matched, gated.refused) == (0, ())


@pytest.mark.parametrize(
    ("marked", "reason"),
    [
        (gate("relu"), "activation 'relu', SwiGlu has silu, gelu, gelu_tanh"),
        (
            gate(up="row", inputs={"row": (randn(1, 1, WIDTH), [1, 1, WIDTH])}),
            "the gate and what it gates are not known to have the same shape",
        ),
        (
            gate(up="number", constants={"number": np.float32(0.5)}),
            "the gate and what it gates are not known to have the same shape",
        ),
    ],
    ids=["another activation", "broadcast", "a number"],
)
def test_what_is_no_gate_stays(marked, reason):
    lowered = apply(marked, *GATES)
    gated, _ = lowered.outcomes
    assert gated.matched == 0
    assert [refusal.reason for refusal in gated.refused] == [reason]
    assert "SwiGlu" not in lowered.operators


def act(kind):
    return graph([("Activation", ["x"], ["y"], {"kind": kind})], {"x": hidden()}, {"y": X})


@pytest.mark.parametrize(
    ("kind", "fused", "apart"),
    [
        ("silu", {"QuickGelu": 1}, {"Sigmoid": 1, "Mul": 1}),
        ("gelu", {"Gelu": 1}, {"Erf": 1, "Mul": 3, "Add": 1}),
        ("gelu_tanh", {"FastGelu": 1}, {"Tanh": 1, "Mul": 5, "Add": 2}),
    ],
)
@pytest.mark.parametrize("target", ["rocm", "portable"])
def test_an_activation_is_what_the_target_has(kind, fused, apart, target, tmp_path):
    marked = act(kind)
    lowered = apply(marked, Activations(), Gelu(), given=context(target))
    assert lowered.outcomes[0].matched == 1
    assert lowered.operators == (fused if target == "rocm" else apart)
    assert deviation(marked, lowered, tmp_path)["y"] <= TOLERANCE


def test_a_bias_goes_into_the_activation(tmp_path):
    marked = graph(
        [("Add", ["x", "bias"], ["biased"]), ("Activation", ["biased"], ["y"], {"kind": "gelu"})],
        {"x": hidden()},
        {"y": X},
        {"bias": randn(HIDDEN)},
    )
    lowered = apply(marked, Activations(), Gelu())
    assert lowered.operators == {"BiasGelu": 1}
    assert deviation(marked, lowered, tmp_path)["y"] <= TOLERANCE


def test_an_unknown_activation_stays_a_marker():
    lowered = apply(act("swish2"), Activations())
    assert [refusal.reason for refusal in lowered.outcomes[0].refused] == ["activation 'swish2' is not known"]
    assert lowered.operators == {"Activation": 1}


PLACES = np.array([[2, 3, 4, -1, -1], [-1, -1, -1, 7, 8], [0, 1, 2, 3, 4]])
IDS = np.arange(ROWS * TOKENS).reshape(ROWS, TOKENS)
PROJECTIONS = {
    "embedding": ([("Transpose", ["e"], ["t"], {"perm": [1, 0]}), ("MatMul", ["last", "t"], ["logits"])], {"Gemm": 1}),
    "weight": ([("MatMul", ["last", "w"], ["logits"])], {"MatMul": 1}),
    "matrix": (
        [
            ("Reshape", ["last", "row"], ["flat"]),
            ("Gemm", ["flat", "e"], ["product"], {"transB": 1}),
            ("Reshape", ["product", "token"], ["logits"]),
        ],
        {"Gemm": 1, "Reshape": 1},
    ),
}


def head(nodes):
    return graph(
        # The embedding is read as one, too: a transposed copy would be the second of it.
        [("Gather", ["e", "ids"], ["embedded"]), ("LastToken", ["x", "position_ids"], ["last"]), *nodes],
        {"x": hidden(), "position_ids": (PLACES, ["batch", "tokens"]), "ids": (IDS, ["batch", "tokens"])},
        {"logits": ["batch", 1, WORDS], "embedded": X},
        {
            "e": randn(WORDS, HIDDEN),
            "w": randn(HIDDEN, WORDS),
            "row": np.array([-1, HIDDEN]),
            "token": np.array([-1, 1, WORDS]),
        },
        {"last": ["batch", 1, HIDDEN]},
    )


@pytest.mark.parametrize(("nodes", "operators"), PROJECTIONS.values(), ids=PROJECTIONS)
def test_the_head_sees_one_token_a_row_and_the_embedding_as_it_is(nodes, operators, tmp_path):
    marked = head(nodes)
    lowered = apply(marked, LastToken())
    assert lowered.outcomes[0].matched == 1
    unsqueeze = {} if "Reshape" in operators else {"Unsqueeze": 1}
    assert lowered.operators == {"Gather": 1, "Cast": 1, "ArgMax": 1, "GatherND": 1, **operators, **unsqueeze}
    assert lowered.nodes("GatherND")[0].outputs[0].shape == ["batch", HIDDEN]
    assert max(deviation(marked, lowered, tmp_path).values()) <= TOLERANCE


def test_a_last_token_that_nothing_projects_keeps_its_axis(tmp_path):
    marked = graph(
        [("LastToken", ["x", "position_ids"], ["last"]), ("Neg", ["last"], ["y"])],
        {"x": hidden(), "position_ids": (PLACES, ["batch", "tokens"])},
        {"y": ["batch", 1, HIDDEN]},
    )
    lowered = apply(marked, LastToken())
    assert lowered.operators == {"Cast": 1, "ArgMax": 1, "GatherND": 1, "Unsqueeze": 1, "Neg": 1}
    assert deviation(marked, lowered, tmp_path)["y"] == 0


def test_a_sampling_head_chooses_in_the_graph():
    given = marker_graphs.sampling(context())
    lowered = apply(head(PROJECTIONS["embedding"][0]), LastToken(), SamplingHead(), given=given)
    assert [(outcome.made, outcome.matched) for outcome in lowered.outcomes] == [("GatherND", 1), ("SampleToken", 1)]
    assert lowered.operators["SampleToken"] == 1
    assert lowered.nodes("SampleToken")[0].inputs[0].shape == ["batch", WORDS]
    options = onnxruntime.SessionOptions()
    custom_ops.register(options)
    session = onnxruntime.InferenceSession(
        marker_graphs.serialized(lowered), options, providers=["CPUExecutionProvider"]
    )
    greedy = {
        "temperature": np.zeros(1, np.float32),
        "top_k": np.zeros(1, np.int32),
        "top_p": np.ones(1, np.float32),
        "min_p": np.zeros(1, np.float32),
        "repetition_penalty": np.ones(1, np.float32),
        "seed": np.zeros((ROWS, 2), np.int64),
    }
    assert {value.name for value in session.get_inputs()} == {"x", "position_ids", "ids", *greedy}
    feeds = {"x": hidden()[0], "position_ids": PLACES, "ids": IDS}
    logits, tokens = session.run(["logits", "next_token"], feeds | greedy)
    np.testing.assert_array_equal(tokens, logits[:, 0].argmax(-1))
    hot = {**greedy, "temperature": np.full(1, 50, np.float32), "seed": np.array([[1, 0], [1, 1], [1, 2]])}
    drawn = session.run(["next_token"], feeds | hot)[0]
    assert drawn.tolist() != tokens.tolist()


def test_no_sampling_head_unless_asked_for_or_without_logits():
    marked = head(PROJECTIONS["weight"][0])
    assert "SampleToken" not in apply(marked, LastToken(), SamplingHead()).operators
    given = marker_graphs.sampling(context())
    (outcome,) = apply(act("silu"), SamplingHead(), given=given).outcomes
    assert [refusal.reason for refusal in outcome.refused] == [
        "the model has no output 'logits' [batch, 1, vocabulary]"
    ]


def test_idle_nodes_go(tmp_path):
    marked = graph(
        [
            ("Identity", ["x"], ["same"]),
            ("Cast", ["same"], ["float"], {"to": 1}),
            ("Reshape", ["float", "shape"], ["reshaped"]),
            ("Cast", ["reshaped"], ["whole"], {"to": 7}),
            ("Cast", ["whole"], ["y"], {"to": 1}),
        ],
        {"x": hidden()},
        {"y": X},
        {"shape": np.array([-1, TOKENS, HIDDEN])},
    )
    fixed = graph(
        [("Reshape", ["x", "shape"], ["reshaped"]), ("Neg", ["reshaped"], ["y"])],
        {"x": (randn(ROWS, TOKENS, HIDDEN), ["batch", TOKENS, HIDDEN])},
        {"y": ["batch", TOKENS, HIDDEN]},
        {"shape": np.array([-1, TOKENS, HIDDEN])},
    )
    # The number of tokens is a symbol: another shape might be meant.
    assert apply(marked, IdleNodes(), IdleReshapes()).operators == {"Reshape": 1, "Cast": 2}
    lowered = apply(fixed, IdleReshapes())
    assert (lowered.operators, lowered.outcomes[0].matched) == ({"Neg": 1}, 1)
    assert deviation(fixed, lowered, tmp_path)["y"] == 0
