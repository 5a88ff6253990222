"""PoolNormalize against sentence-transformers' pooling and torch's norm."""

import numpy as np
import op_harness as harness
import pytest
import torch
from sentence_transformers.models import Pooling

from rocline import custom_ops
from rocline.custom_ops.schema import Case

SPEC = custom_ops.specs()["PoolNormalize"]


def pool(x, mask, mode, normalize=0):
    """``y`` of one run through ONNX Runtime."""
    arrays = {"x": x, "attention_mask": mask}
    case = Case("given", {name: a.shape for name, a in arrays.items()}, {"mode": mode, "normalize": normalize})
    session = harness.make_session(harness.make_model(SPEC, case, "float32", arrays))
    return session.run(["y"], arrays)[0]


def masks(tokens):
    """Whole, padded on the right, on the left, with a hole, and empty."""
    places = np.arange(tokens)
    whole = np.ones(tokens, bool)
    rows = [whole, places < tokens // 2, places >= tokens // 3, places % 3 != 1, ~whole]
    return np.array(rows, np.int64)


@pytest.mark.parametrize("normalize", [0, 1])
@pytest.mark.parametrize(("mode", "theirs"), [("mean", "mean"), ("cls", "cls"), ("last", "lasttoken")])
@pytest.mark.parametrize("tokens", [1, 2, 37, 300])
def test_pools_as_sentence_transformers_does(mode, theirs, normalize, tokens):
    x = np.random.default_rng(tokens).standard_normal((5, tokens, 67), dtype=np.float32)
    mask = masks(tokens)
    features = {"token_embeddings": torch.from_numpy(x.copy()), "attention_mask": torch.from_numpy(mask)}
    wanted = Pooling(67, pooling_mode=theirs)(features)["sentence_embedding"]
    if normalize:
        wanted = torch.nn.functional.normalize(wanted, dim=1)
    np.testing.assert_allclose(pool(x, mask, mode, normalize), wanted.numpy(), rtol=2e-6, atol=5e-7)


@pytest.mark.parametrize("mode", ["mean", "cls", "last"])
def test_a_row_is_the_same_in_any_batch(mode):
    x = np.random.default_rng(2).standard_normal((5, 300, 130), dtype=np.float32)
    mask = masks(300)
    together = pool(x, mask, mode, 1)
    for row in range(5):
        np.testing.assert_array_equal(pool(x[row : row + 1], mask[row : row + 1], mode, 1), together[row : row + 1])


def test_other_attributes_are_refused():
    x, mask = np.zeros((1, 2, 3), np.float32), np.ones((1, 2), np.int64)
    with pytest.raises(Exception, match="PoolNormalize: attribute 'mode': 'max', expected mean, cls or last"):
        pool(x, mask, "max")
    with pytest.raises(Exception, match="PoolNormalize: attribute 'mode': 15 characters, expected at most 7"):
        pool(x, mask, "weightedaverage")
