"""Another extension's script, loaded after ToDo: it calls functions that look at the host in the middle of a job."""

from modules import script_callbacks, scripts

watchers = []  # each is called with the moment's name and the object that the host hands over there


def _watch(moment, subject):
    for watcher in watchers:
        watcher(moment, subject)


class Script(scripts.Script):
    def title(self):
        return "Witness"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def process(self, p):
        _watch("process", p)

    def process_batch(self, p, **kwargs):
        _watch("process_batch", p)

    def process_before_every_sampling(self, p, **kwargs):
        _watch("process_before_every_sampling", p)

    def postprocess_batch(self, p, **kwargs):
        _watch("postprocess_batch", p)

    def postprocess(self, p, processed):
        _watch("postprocess", p)


script_callbacks.on_cfg_denoiser(lambda params: _watch("cfg_denoiser", params))
