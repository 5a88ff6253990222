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
        key = (source, *sorted(arguments.items()))
        if key not in folders:
            out = tmp_path_factory.mktemp("exported") / "model"
            export_model(source, out, **arguments)
            folders[key] = out
        return folders[key]

    return export
