"""Windows of time in which ToDo reaches samplings that the host tells no script of."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from modules import shared
from modules.sd_samplers_common import Sampler as HostSampler

from .hosts import Processing, Sampler, arguments_of
from .sampling import before_sampling, is_announced


class Window:
    """While it is open, samplings for this processing object and for its copies need no announcement.

    After an error nobody closes it, so it ends with the processing object, or when a generation of the host's next job
    begins. (A replaced `p.close` does not serve: copies would have it too, and close the window of the original.)

    p: copies share its comments, and are known by them.
    args: of the script, for copies that have none of their own.
    of_passes: whether a sampling may be a pass of hires fix.
    """

    def __init__(self, p: Processing, args: Sequence[Any], of_passes: bool):
        self.owner = weakref.ref(p, lambda _: _close(self))
        self._comments = p.comments
        self._args = args
        self._of_passes = of_passes
        self._job = shared.state.time_start

    def is_over(self, p: Processing) -> bool:
        """Whether it is p's own, or of a job that has ended."""
        return self.owner() is p or self._job != shared.state.time_start

    def announce(self, sampler: Sampler) -> bool:
        """Announce the sampling that begins now, if it is one of this window's. Returns whether it is."""
        p = sampler.p
        if getattr(p, "comments", None) is not self._comments:  # a generation inside this one has a p of its own
            return False
        before_sampling(p, arguments_of(p) or self._args, sampler, self._of_passes)
        return True


_windows: list[Window] = []
_launch: Callable[..., Any] = HostSampler.launch_sampling
_wrapper: Callable[..., Any] | None = None


def open_window(p: Processing, args: Sequence[Any]) -> None:
    """Open a window until `close_windows`: from now on other scripts work on p's images, and may sample for that."""
    _open(Window(p, args, of_passes=False))


def close_windows(p: Processing) -> None:
    """Close the windows of p and of earlier jobs, if there are any. The windows of p's copies stay open."""
    for window in [window for window in _windows if window.is_over(p)]:
        _close(window)


def announce_samplings(p: Processing, args: Sequence[Any]) -> None:
    """Open a window for as long as another extension's replacement of `p.sample` runs.

    A replacement may sample as often as it likes, and need not call the scripts before.
    """
    sample = p.sample

    def run(*sample_args: Any, **kwargs: Any) -> Any:
        p.sample = sample
        with _opened(Window(p, args, of_passes=True)):
            return sample(*sample_args, **kwargs)

    p.sample = run


@contextlib.contextmanager
def _opened(window: Window) -> Iterator[None]:
    _open(window)
    try:
        yield
    finally:
        _close(window)


def _open(window: Window) -> None:
    global _launch
    if not _windows and not _is_wrapped():
        _launch, HostSampler.launch_sampling = HostSampler.launch_sampling, _launch_announced
    _windows.append(window)


def _close(window: Window) -> None:
    global _wrapper
    if window not in _windows:
        return
    _windows.remove(window)
    if _windows or _is_wrapped():
        return
    if HostSampler.launch_sampling is _launch_announced:
        HostSampler.launch_sampling = _launch
    else:  # another extension has put its own around ours meanwhile
        _wrapper = HostSampler.launch_sampling


def _is_wrapped() -> bool:
    """Whether the host's method is another extension's that calls ours. Put around it again, ours would call itself."""
    return HostSampler.launch_sampling is _wrapper


def _launch_announced(sampler: Sampler, *args: Any, **kwargs: Any) -> Any:
    """Stand in for the host's method that all samplings pass through. The sampler may be one that nobody knows."""
    if not is_announced(sampler):
        any(window.announce(sampler) for window in reversed(_windows))
    return _launch(sampler, *args, **kwargs)
