"""The last look at a marked graph: all that the model keeps went through the markers, once, and nothing beside them."""

from collections import Counter, defaultdict
from pathlib import Path

import onnx

from rocline.custom_ops.rewriting import MARKERS
from rocline.export.markers.refusal import Refused


def check(path: Path, layers: int) -> Counter[str]:
    """Returns how many markers of each kind a traced graph holds.

    Every layer's past key and value is read by one CacheAppend and by nothing else, not even for its shape; what that
    gives is read by one Attention, as its keys or values, and is the layer's present; so every layer is appended to and
    attended to once. Markers take their positions straight from ``position_ids``.

    Args:
        path: the ONNX file; its weights may lie beside it.
        layers: how many layers the cache has.

    Raises:
        Refused: it is otherwise.
    """
    graph = onnx.load(path, load_external_data=False).graph
    aliases = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}

    def source(name: str) -> str:
        while name in aliases:
            name = aliases[name]
        return name

    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
    for node in graph.node:
        if node.op_type != "Identity":
            for index, name in enumerate(node.input):
                readers[source(name)].append((node, index))
    markers = [node for node in graph.node if node.domain == MARKERS]
    counts = Counter(node.op_type for node in markers)
    outputs = {output.name: source(output.name) for output in graph.output}

    found = (counts["CacheAppend"], counts["Attention"])
    if found != (2 * layers, layers):
        raise Refused(
            f"{found[0]} cache appends and {found[1]} attentions went through the markers, expected {2 * layers} and "
            f"{layers} for a cache of {layers} layers"
        )
    for layer in range(layers):
        attended = [
            _through_cache(readers, outputs, f"past_key_values.{layer}.{part}", f"present.{layer}.{part}", index)
            for index, part in ((1, "key"), (2, "value"))
        ]
        if attended[0] != attended[1]:
            raise Refused(f"layer {layer}: its keys and values go to different attentions")
    for node in markers:
        for index in _POSITIONS.get(node.op_type, ()):
            if source(node.input[index]) != "position_ids":
                raise Refused(f"{node.op_type}: its positions are not the graph's position_ids as they are")
    if counts["LastToken"] != 1:
        raise Refused(f"the output embeddings are used {counts['LastToken']} times, expected once")
    return counts


# Which input of a marker holds positions.
_POSITIONS = {"CacheAppend": (2,), "Attention": (3,), "RotaryTable": (0,), "LastToken": (1,)}


def _through_cache(
    readers: dict[str, list[tuple[onnx.NodeProto, int]]],
    outputs: dict[str, str],
    past: str,
    present: str,
    index: int,
) -> str:
    """Follows one cache input to the one attention that reads it; returns that node's output."""
    appends = readers[past]
    if [(node.op_type, place) for node, place in appends] != [("CacheAppend", 0)]:
        others = sorted({node.op_type for node, _ in appends} - {"CacheAppend"}) or ["several appends"]
        raise Refused(f"{past}: is read by {', '.join(others)}, expected one append alone")
    appended = appends[0][0].output[0]
    if outputs.get(present) != appended:
        raise Refused(f"{present}: is not what {past} became")
    uses = readers[appended]
    if [(node.op_type, place) for node, place in uses] != [("Attention", index)]:
        got = ", ".join(node.op_type for node, _ in uses) or "nothing"
        raise Refused(f"{present}: is read by {got}, expected one attention")
    output: str = uses[0][0].output[0]
    return output
