"""The queue of jobs: one at a time. The host adds its statistics to the last output."""

import threading

from modules import errors
from modules.shared import state

queue_lock = threading.Lock()


def wrap_gradio_gpu_call(func, extra_outputs=None):
    def f(task, *args):
        with queue_lock:
            state.begin(job=task)
            try:
                res = list(func(task, *args))
            except Exception as e:
                errors.report("Error completing request")
                res = [*extra_outputs, f"<div class='error'>{e}</div>"]
            finally:
                state.begin()
        res[-1] += "<div class='performance'></div>"
        return tuple(res)

    return f
