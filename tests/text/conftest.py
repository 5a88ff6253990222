import json

import pytest
import tiny_models

from rocline.export import export_model, random_models


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory):
    """`tiny_decoder(kind)`: the Hugging Face folder and the model folder of a tiny decoder, exported once."""
    folders = {}

    def export(kind, **arguments):
        key = (kind, *arguments.items())
        if key not in folders:
            base = tmp_path_factory.mktemp(kind)
            tiny_models.save(kind, base / "hf")
            export_model(base / "hf", base / "onnx", task="text-generation", **arguments)
            folders[key] = base / "hf", base / "onnx"
        return folders[key]

    return export


@pytest.fixture(scope="session")
def endless(tmp_path_factory):
    """A tiny model with a long context that never ends an answer of its own will, and a chat template."""
    base = tmp_path_factory.mktemp("endless")
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 1 << 17,
    }
    random_models.build(config, 1, base / "hf")
    for name in ("config.json", "generation_config.json"):
        path = base / "hf" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": None}))
    template = "{% for message in messages %}[{{ message.role }}: {{ message.content }}]{% endfor %}"
    (base / "hf/chat_template.jinja").write_text(template)
    export_model(base / "hf", base / "onnx", task="text-generation")
    return base / "onnx"
