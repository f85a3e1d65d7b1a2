"""State that the whole host shares."""

import time
from types import SimpleNamespace

sd_model = None  # the model that is loaded now
is_forge = False  # Forge and its kin call scripts at fewer moments
checkpoint = None  # the model that is selected, to which the host comes back after a refiner


class State:
    def begin(self, job=""):
        self.job = job
        self.job_no, self.job_count = 0, -1
        self.interrupted = self.skipped = False
        self.sampling_step = self.sampling_steps = 0
        self.time_start = time.time()

    def nextjob(self):
        self.job_no += 1

    def interrupt(self):
        self.interrupted = True


state = State()
state.begin()

OPTIONS = {"batch_cond_uncond": True, "enable_quantization": False, "infotext_skip_pasting": []}
OPTIONS |= {"sd_model_checkpoint": None, "img2img_fix_steps": False}
OPTIONS |= {"always_discard_next_to_last_sigma": False, "use_old_hires_fix_width_height": False}
opts = SimpleNamespace(**OPTIONS, data_labels={})  # data_labels: name -> an option's definition
