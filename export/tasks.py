"""The tasks rocline exports, and which of them a model fits: decided from its config.json, before weights are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rocline.errors import ExportError


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: the Hugging Face task name.
        mappings: names of the tables in transformers that list the architectures with this task's head.
        cached: whether the decoder is exported with a KV cache where the architecture has one.
    """

    name: str
    mappings: tuple[str, ...]
    cached: bool = False


TASKS = {
    task.name: task
    for task in (
        Task("feature-extraction", ("MODEL_MAPPING_NAMES",)),
        Task("text-classification", ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",)),
        Task("token-classification", ("MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",)),
        Task("fill-mask", ("MODEL_FOR_MASKED_LM_MAPPING_NAMES",)),
        Task("question-answering", ("MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",)),
        Task("text-generation", ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",), cached=True),
        Task("text2text-generation", ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",), cached=True),
        Task("image-classification", ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",)),
        Task("object-detection", ("MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES",)),
        Task(
            "automatic-speech-recognition",
            ("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES", "MODEL_FOR_CTC_MAPPING_NAMES"),
            cached=True,
        ),
    )
}


def check_name(task: str) -> None:
    """Refuses a name that is not in `TASKS`.

    Raises:
        ExportError: with the names there are.
    """
    if task not in TASKS:
        raise ExportError(f"task {task!r} is unknown, expected one of {', '.join(TASKS)}")


def choose(config: Mapping[str, Any], task: str | None, *, source: str, sentence_embedder: bool = False) -> str:
    """Returns the task to export a model for.

    Args:
        config: the model's config.json.
        task: what the caller asked for; None infers it from the config's ``architectures``.
        source: how messages name the model.
        sentence_embedder: whether the folder is a sentence-transformers model, whose task is feature-extraction
            whatever head its architecture has.

    Raises:
        ExportError: the model does not fit the task, Optimum cannot export it, or no task was given and the config
            names no architecture that tells one.
    """
    model_type = config.get("model_type")
    architectures = tuple(config.get("architectures") or ())
    supported = _optimum_tasks(model_type, source)
    headed = [name for name in TASKS if name in supported and _heads(TASKS[name]) & set(architectures)]
    fits = headed or [name for name in TASKS if name in supported]
    if architectures and "feature-extraction" in supported and "feature-extraction" not in fits:
        fits.append("feature-extraction")
    if task is None:
        if sentence_embedder and "feature-extraction" in fits:
            return "feature-extraction"
        if headed:
            return headed[0]
        given = f"architectures {list(architectures)}" if architectures else "no architectures"
        raise ExportError(
            f"{source}: config.json has {given}, which tells no task; give one with --task: {', '.join(fits) or 'none'}"
        )
    check_name(task)
    if task not in fits:
        made_for = ", ".join(architectures) or f"{model_type} model"
        raise ExportError(f"{source}: task {task!r} does not fit {made_for}, expected {_one_of(fits)}")
    return task


def optimum_task(task: str, model_type: str) -> str:
    """Returns Optimum's name for the task: with ``-with-past`` where the architecture has a KV cache."""
    with_past = f"{task}-with-past"
    return with_past if TASKS[task].cached and with_past in _optimum_tasks(model_type, model_type) else task


def manager() -> Any:
    """Returns Optimum's TasksManager with the architectures that can become ONNX registered."""
    import optimum.exporters.onnx.model_configs  # noqa: F401  (registers them)
    from optimum.exporters.tasks import TasksManager

    return TasksManager


def _optimum_tasks(model_type: Any, source: str) -> set[str]:
    if not isinstance(model_type, str):
        raise ExportError(f"{source}: config.json has no model_type, expected the config of a transformers model")
    try:
        return set(manager().get_supported_tasks_for_model_type(model_type, "onnx", library_name="transformers"))
    except KeyError:
        raise ExportError(f"{source}: Optimum cannot export model_type {model_type!r} to ONNX") from None


def _heads(task: Task) -> set[str]:
    from transformers.models.auto import modeling_auto

    names: set[str] = set()
    for mapping in task.mappings:
        for architectures in getattr(modeling_auto, mapping).values():
            names.update((architectures,) if isinstance(architectures, str) else architectures)
    return names


def _one_of(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"one of {', '.join(names)}"
