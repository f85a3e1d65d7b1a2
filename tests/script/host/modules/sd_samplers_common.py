"""The common part of all samplers: how a sampling is launched, and how it ends early."""

from modules.shared import state


class InterruptedException(BaseException):
    pass


class Sampler:
    def callback_state(self, info):
        state.sampling_step = info["i"]

    def launch_sampling(self, steps, func):
        self.model_wrap_cfg.steps = steps
        self.model_wrap_cfg.total_steps = self.config.total_steps(steps)
        state.sampling_steps = steps
        state.sampling_step = 0
        try:
            return func()
        except (RecursionError, InterruptedException):
            return self.last_latent
