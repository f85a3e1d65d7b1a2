"""Windows of time in which ToDo reaches samplings that the host tells no script of."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
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
_restore: Callable[[], None]  # while there are windows


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
        window = Window(p, args, of_passes=True)
        _open(window)
        try:
            return sample(*sample_args, **kwargs)
        finally:
            _close(window)

    p.sample = run


def _open(window: Window) -> None:
    global _restore
    if not _windows:
        _restore = _replace()
    _windows.append(window)


def _close(window: Window) -> None:
    if window in _windows:
        _windows.remove(window)
        if not _windows:
            _restore()


def _replace() -> Callable[[], None]:
    """Replace the host's method that all samplings pass through. Returns the function that undoes it."""
    launch = HostSampler.launch_sampling

    def launch_announced(sampler: Sampler, *args: Any, **kwargs: Any) -> Any:
        if not is_announced(sampler):  # the sampler may be one that nobody knows
            any(window.announce(sampler) for window in reversed(_windows))
        return launch(sampler, *args, **kwargs)

    def restore() -> None:
        # Another extension may have put its own around ours meanwhile. Ours does nothing there while no window is open.
        if HostSampler.launch_sampling is launch_announced:
            HostSampler.launch_sampling = launch

    HostSampler.launch_sampling = launch_announced
    return restore
