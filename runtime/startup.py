"""Brings a session up: its device and stream, and ONNX Runtime on them; where one fails, the next, with the reason."""

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rocline.errors import DeviceError, InputError, ModelError, ProviderError
from rocline.runtime.devices import Device, Stream, open_device
from rocline.runtime.ort_session import Plan
from rocline.runtime.probe import Probe
from rocline.runtime.providers import CPU, Provider
from rocline.runtime.report import Fallback

# Reentrant: the collector may drop a session, which leaves its lane, in the midst of a count.
_sharing = threading.RLock()
_lanes: "weakref.WeakKeyDictionary[Stream, Lane]" = weakref.WeakKeyDictionary()


class Lane:
    """A device and a stream on it, which sessions share; the last to leave closes what was opened for them.

    Attributes:
        device: where the sessions' buffers are.
        stream: where all their work is queued.
    """

    def __init__(self, stream: Stream, *, owned: bool) -> None:
        self.device: Device = stream.device
        self.stream = stream
        self._owned, self._sessions = owned, 1

    @classmethod
    def open(cls, kind: str, device_id: int) -> "Lane":
        """Opens a device and makes a stream.

        Raises:
            DeviceError: the device does not initialise.
        """
        device = open_device(kind, device_id)
        try:
            lane = cls(device.create_stream(), owned=True)
        except BaseException:
            device.close()
            raise
        with _sharing:
            _lanes[lane.stream] = lane
        return lane

    @classmethod
    def join(cls, stream: Stream) -> "Lane":
        """Returns the lane of a stream that another session, or the caller, made."""
        with _sharing:
            lane = _lanes.get(stream)
            if lane is None:
                lane = _lanes[stream] = cls(stream, owned=False)
            else:
                lane._sessions += 1
            return lane

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps the device and the stream open while the block runs, as another session would."""
        with _sharing:
            self._sessions += 1
        try:
            yield
        finally:
            self.leave()

    def leave(self) -> None:
        """Lets go; with the last session goes the stream, and the device with all its buffers, if made for them.

        Raises:
            DeviceError: work that was still queued failed.
        """
        with _sharing:
            self._sessions -= 1
            if self._sessions:
                return
            _lanes.pop(self.stream, None)
        if not self._owned:
            return
        try:
            self.stream.close()
        finally:
            self.device.close()


@dataclass
class Started:
    """A session that is up.

    Attributes:
        ort: the onnxruntime.InferenceSession.
        plan: what it was made of.
        providers: those that are in use, the CPU included.
        lane: the GPU and the stream that it queues on; None where ONNX Runtime copies and waits by itself.
        fallbacks: the providers asked for that are not in use.
        capture: None if its runs can be captured as a graph, else why not.
    """

    ort: Any
    plan: Plan
    providers: list[Provider]
    lane: Lane | None
    fallbacks: list[Fallback]
    capture: str | None


def start(plan: Plan, probes: Sequence[Probe], device_id: int, stream: Stream | None, *, strict: bool) -> Started:
    """Brings a session up on the first of the probed providers that works, and on the CPU if none does.

    Args:
        plan: what to make it of.
        probes: one for each provider asked for, in order.
        device_id: which GPU.
        stream: the stream to queue on; None for a new one.
        strict: raise instead of leaving out a provider.

    Raises:
        ModelError: this onnxruntime does not load the model, on the CPU either.
        ProviderError: ``strict``, and a provider cannot be used.
        InputError: ``stream`` is none, closed, or of another device, or no provider takes one.
    """
    if stream is not None and not isinstance(stream, Stream):
        raise InputError(f"stream: {stream!r}, expected a Session or a Stream")
    if stream is not None and not any(p.provider.takes_user_stream for p in probes):
        names = ", ".join(p.provider.name for p in probes)
        raise InputError(f"stream: {stream} was given, but no provider that was asked for takes one ({names})")
    fallbacks = [Fallback(p.provider.ort_name, p.reason, p.fix) for p in probes if p.reason is not None]
    usable = [p.provider for p in probes if p.reason is None]
    if CPU not in usable:
        usable.append(CPU)

    def drop(rows: Sequence[Provider], reason: str) -> None:
        for row in rows:
            fallbacks.append(Fallback(row.ort_name, reason, f"check the GPU and the installation of {row.stack}"))
            usable.remove(row)
        if strict:
            refuse(fallbacks)

    if strict:
        refuse(fallbacks)
    lane = None
    while lane is None and (row := _first_with_stream(usable)) is not None:
        lane, reason = _lane(row, device_id, stream)
        if lane is None:
            drop([row], reason)
    try:
        session, plan, capture = _create(plan, usable, lane, drop)
    except BaseException:
        if lane is not None:
            lane.leave()
        raise
    if lane is not None and _first_with_stream(usable) is None:
        lane.leave()
        lane = None
    return Started(session, plan, usable, lane, fallbacks, capture if lane is not None else "it runs on the CPU")


def refuse(fallbacks: Sequence[Fallback]) -> None:
    """Raises ProviderError with the first of ``fallbacks``, if there is one."""
    if fallbacks:
        first = fallbacks[0]
        raise ProviderError(f"strict: {first.provider} cannot run here: {first.why}")


def _first_with_stream(providers: Sequence[Provider]) -> Provider | None:
    return next((row for row in providers if row.takes_user_stream), None)


def _fitting(plan: Plan, providers: Sequence[Provider]) -> Plan:
    """Returns the plan for ``providers``: the CPU alone lacks most bfloat16 operators."""
    return plan.widened() if plan.outline.bfloat16 and list(providers) == [CPU] else plan


def _lane(row: Provider, device_id: int, stream: Stream | None) -> tuple[Lane | None, str]:
    """Returns the lane for a provider, or why its device cannot be used."""
    if stream is None:
        try:
            return Lane.open(row.backend, device_id), ""
        except DeviceError as error:
            return None, str(error)
    wanted = f"{row.backend}:{device_id}"
    if stream.closed:
        raise InputError(f"stream: {stream} is closed")
    if str(stream.device) != wanted:
        raise InputError(f"stream: {stream}, expected one on {wanted}, where {row.ort_name} runs")
    if not stream.handle:
        raise InputError(f"stream: {stream} is the null stream, expected one that does not synchronise with others")
    return Lane.join(stream), ""


def _create(
    plan: Plan, usable: list[Provider], lane: Lane | None, drop: Callable[[Sequence[Provider], str], None]
) -> tuple[Any, Plan, str | None]:
    """Creates ONNX Runtime's session on ``usable``, from which it drops what does not work.

    Returns:
        The session, the plan it was made of, and why its runs cannot be captured, or None.
    """
    stream = lane.stream if lane is not None else None
    wanted = stream is not None and bool(plan.options.session.get("graph_capture"))
    capture = None if wanted else "the session was opened without options={'graph_capture': True}"
    # ONNX Runtime knows which graphs cannot be captured, and then creates no session with that option.
    problems: list[ModelError] = []
    for providers, captured in [*([(usable, True)] if wanted else []), (usable, False), ([CPU], False)]:
        fitting = _fitting(plan, providers)
        try:
            session, log = fitting.create(providers, stream=stream, capture=captured)
        except ModelError as error:
            problems.append(error)
            if providers == [CPU]:
                raise problems[0] from None
            continue
        if wanted and not captured:
            capture = _reason(plan, problems[0])
        if providers == [CPU] != usable:
            drop([row for row in usable if row is not CPU], _reason(plan, problems[-1]))
        break
    active = session.get_providers()
    lost = [row for row in usable if row.ort_name not in active]
    drop(lost, log.errors[0] if log.errors else "ONNX Runtime dropped it without a word")
    if lost and _fitting(plan, usable) is not fitting:
        fitting = _fitting(plan, usable)
        session, _ = fitting.create(usable)
    return session, fitting, capture


def _reason(plan: Plan, error: ModelError) -> str:
    return str(error).removeprefix(f"{plan.path}: ")
