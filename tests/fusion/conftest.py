"""What the tests of marked traces share."""

import pytest
import tiny_models


@pytest.fixture
def trace(tmp_path):
    """Makes and traces a tiny model: (model, marked graph)."""
    from transformers import AutoModelForCausalLM

    from rocline.export import markers, random_models
    from rocline.export.quiet import quiet

    def run(kind="llama", **config):
        folder = tmp_path / f"{kind} source"
        if config:
            random_models.build({**tiny_models.GROUPED, "model_type": kind, **config}, 0, folder)
        else:
            tiny_models.save(kind, folder)
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(folder).eval()
        return model, markers.trace(model, tmp_path, opset=18)

    return run


@pytest.fixture
def restored():
    """Whatever a test planted, the trace leaves nothing of its own behind."""
    from transformers import cache_utils, masking_utils, modeling_utils

    from rocline.export.markers import seams

    yield
    assert seams.IMPLEMENTATION not in modeling_utils.ALL_ATTENTION_FUNCTIONS
    assert seams.IMPLEMENTATION not in masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
    assert cache_utils.DynamicLayer.update.__module__ == cache_utils.__name__
