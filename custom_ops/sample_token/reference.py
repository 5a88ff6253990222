"""SampleToken in NumPy and Python's whole numbers: the definition that every kernel must meet token for token."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ONE = 1 << 39
REFUSALS = ("temperature", "top_p", "min_p", "repetition_penalty", "NaN", "-inf")
"""What a row with no token is refused for: its token is -1, -2, ... in this order."""

_NEAR, _FAR = 111 << 23, 142 << 23
_MIDDLE = _NEAR >> 8
_OUTER = _MIDDLE + _FAR - _NEAR
# 1 - 2^-f for f in [0, 1) in units of 2^-32, highest power first, with alternating signs.
_POWER = (0x7346C, 0x53B871, 0x273FAE0, 0xE34BE42, 0x3D7F5DDE, 0xB1721670)


def philox4x32(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Ten rounds of Philox4x32 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011)."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        even, odd = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = odd >> 32 ^ c1 ^ k0, odd & 0xFFFFFFFF, even >> 32 ^ c3 ^ k1, even & 0xFFFFFFFF
        k0, k1 = k0 + 0x9E3779B9 & 0xFFFFFFFF, k1 + 0xBB67AE85 & 0xFFFFFFFF
    return c0, c1, c2, c3


def random_bits(seed: int, offset: int) -> int:
    """The 64 bits that decide a row's token: the first two words of Philox4x32-10 at (seed, offset)."""
    words = philox4x32(
        (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF), (offset & 0xFFFFFFFF, offset >> 32 & 0xFFFFFFFF, 0, 0)
    )
    return words[0] | words[1] << 32


def penalise(logits: Array, previous: Array, penalty: float) -> Array:
    """float32 [vocab] with the logits of the tokens in ``previous`` divided (above 0) or multiplied by ``penalty``."""
    out = logits.astype(np.float32)
    seen = np.unique(previous[(previous >= 0) & (previous < out.size)])
    chosen = out[seen].astype(np.float64)
    factor = np.float64(np.float32(penalty))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        out[seen] = np.where(chosen < 0, chosen * factor, chosen / factor).astype(np.float32)
    return out


def ranks(logits: Array) -> Array:
    """int64 [vocab]: the distance to the best logit as a 28-bit number, 0 for the best; equal ranks are ties."""
    best = logits.max()
    with np.errstate(over="ignore", invalid="ignore"):
        distance = np.where(logits == best, np.float32(0), best - logits)
    bits = distance.astype(np.float32).view(np.uint32).astype(np.int64)
    return np.where(bits < _NEAR, bits >> 8, np.where(bits < _FAR, bits - _NEAR + _MIDDLE, (bits - _FAR >> 8) + _OUTER))


def weights(rank: Array, temperature: float) -> Array:
    """int64 [vocab]: exp(-distance / temperature) in units of 1 / ONE, rounded down."""
    bits = np.where(
        rank < _MIDDLE, rank << 8, np.where(rank < _OUTER, rank - _MIDDLE + _NEAR, (rank - _OUTER << 8) + _FAR)
    )
    distance = bits.astype(np.uint32).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        exponent = distance * np.float32(np.float64(48408812.54395) / np.float64(np.float32(temperature)))
    counts = exponent < np.float32(39 * 2**25)
    fixed = np.where(counts, exponent, 0).astype(np.uint64)
    fraction = (fixed << np.uint64(7)) & np.uint64(0xFFFFFFFF)
    power = np.full(fraction.shape, _POWER[0], np.uint64)
    for coefficient in _POWER[1:]:
        power = np.uint64(coefficient) - (power * fraction >> np.uint64(32))
    one = np.uint64(1 << 32) - (power * fraction >> np.uint64(32))
    weight = (one << np.uint64(7) >> (fixed >> np.uint64(25))).astype(np.int64)
    return np.where(rank == 0, ONE, np.where(counts, weight, 0))


@dataclass(frozen=True)
class Row:
    """The parameters of one row."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    offset: int

    def refusal(self, logits: Array) -> str | None:
        """Which of REFUSALS applies to this row and its penalised ``logits``, if any."""
        if not 0 <= self.temperature < np.inf:
            return "temperature"
        if not 0 <= self.top_p <= 1:
            return "top_p"
        if not 0 <= self.min_p <= 1:
            return "min_p"
        if not 0 < self.repetition_penalty < np.inf:
            return "repetition_penalty"
        if np.isnan(logits).any():
            return "NaN"
        return "-inf" if logits.max() == -np.inf else None


def kept_tokens(logits: Array, row: Row) -> tuple[Array, Array]:
    """The ids of the tokens that are kept, in the order in which a draw visits them, and their weights (both int64).

    ``logits`` are the penalised float32 ones. The order is that of the ids, with the tokens of the lowest rank that
    top_k or top_p keeps at the end: they are the ones of which only some may be kept.
    """
    rank = ranks(logits)
    weight = weights(rank, row.temperature)
    # By rank, then by id: the most probable first, ties to the lower id.
    order = np.argsort(rank, kind="stable")
    if 0 < row.top_k < order.size:
        order = order[: row.top_k]
    if row.top_p < 1:
        sums = np.cumsum(weight[order])
        need = max(1, -(-int(sums[-1]) * _round_up(row.top_p, 2**32) // 2**32))
        order = order[: int(np.searchsorted(sums, need)) + 1]
    cut = rank[order[-1]] if row.top_p < 1 or 0 < row.top_k < rank.size else -1
    order = order[weight[order] >= _round_up(row.min_p, ONE)]
    order = order[np.lexsort((order, rank[order] == cut))]
    return order, weight[order]


def _round_up(value: float, unit: int) -> int:
    exact = float(np.float32(value)) * unit
    return int(exact) + (int(exact) < exact)


def sample_row(logits: Array, row: Row, previous: Array) -> int:
    """The token of one row, or minus the place (from 1) of what it is refused for in REFUSALS."""
    penalised = penalise(logits, previous, row.repetition_penalty)
    refusal = row.refusal(penalised)
    if refusal:
        return -1 - REFUSALS.index(refusal)
    if row.temperature == 0:
        return int(np.argmax(penalised))
    ids, weight = kept_tokens(penalised, row)
    sums = np.cumsum(weight)
    place = random_bits(row.seed, row.offset) * int(sums[-1]) >> 64
    return int(ids[np.searchsorted(sums, place, side="right")])


def reference(
    logits: Array,
    temperature: Array,
    top_k: Array,
    top_p: Array,
    min_p: Array,
    repetition_penalty: Array,
    seed: Array,
    previous: Array | None = None,
) -> dict[str, Array]:
    """``tokens``: int64 [batch]; see spec.py for the inputs."""
    batch = logits.shape[0]
    if previous is None:
        previous = np.empty((batch, 0), np.int64)
    rows = zip(
        *(np.broadcast_to(x, batch).tolist() for x in (temperature, top_k, top_p, min_p, repetition_penalty)),
        *seed.T.tolist(),
        strict=True,
    )
    tokens = [sample_row(logits[i], Row(*parameters), previous[i]) for i, parameters in enumerate(rows)]
    return {"tokens": np.array(tokens, np.int64)}
