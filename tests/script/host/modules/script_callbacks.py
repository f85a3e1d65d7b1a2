"""Callbacks that scripts register while they are loaded. The host swallows their errors."""

from modules import errors

_before_ui = []
_app_started = []
_cfg_denoiser = []
_cfg_denoised = []
_cfg_after_cfg = []
_all = [_before_ui, _app_started, _cfg_denoiser, _cfg_denoised, _cfg_after_cfg]


class CFGDenoiserParams:
    def __init__(self, x, sigma, sampling_step, total_sampling_steps, denoiser=None):
        self.x = x
        self.sigma = sigma
        self.sampling_step = sampling_step
        self.total_sampling_steps = total_sampling_steps
        self.denoiser = denoiser


class CFGDenoisedParams:
    def __init__(self, x, sampling_step, total_sampling_steps, inner_model):
        self.x = x
        self.sampling_step = sampling_step
        self.total_sampling_steps = total_sampling_steps
        self.inner_model = inner_model


class AfterCFGCallbackParams:
    def __init__(self, x, sampling_step, total_sampling_steps):
        self.x = x
        self.sampling_step = sampling_step
        self.total_sampling_steps = total_sampling_steps


def clear_callbacks():
    for callbacks in _all:
        callbacks.clear()


def remove_callbacks_for_function(function):
    for callbacks in _all:
        callbacks[:] = [callback for callback in callbacks if callback != function]


def _call(callbacks, *args):
    for callback in callbacks:
        try:
            callback(*args)
        except Exception:
            errors.report(f"Error executing {callback}")


def on_before_ui(callback):
    _before_ui.append(callback)


def before_ui_callback():
    _call(reversed(_before_ui))


def on_app_started(callback):
    _app_started.append(callback)


def app_started_callback(demo, app):
    _call(_app_started, demo, app)


def on_cfg_denoiser(callback):
    _cfg_denoiser.append(callback)


def cfg_denoiser_callback(params):
    _call(_cfg_denoiser, params)


def on_cfg_denoised(callback):
    _cfg_denoised.append(callback)


def cfg_denoised_callback(params):
    _call(_cfg_denoised, params)


def on_cfg_after_cfg(callback):
    _cfg_after_cfg.append(callback)


def cfg_after_cfg_callback(params):
    _call(_cfg_after_cfg, params)
