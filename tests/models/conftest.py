import pytest

from rocline.export.pipeline import export_model

_SHARED = ("minilm", "smollm2")


@pytest.fixture(scope="session")
def exported(request, tmp_path_factory):
    """`exported(source, **arguments)`: the model folder of a source, exported once for all tests."""
    folders = {}

    def export(source, **arguments):
        if source in _SHARED:
            return request.getfixturevalue(source)
        if source not in folders:
            out = tmp_path_factory.mktemp("exported") / "model"
            export_model(source, out, **arguments)
            folders[source] = out
        return folders[source]

    return export
