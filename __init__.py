"""The node pack for ComfyUI. The WebUI does not read this file. Tools that take this folder for a package get nothing."""

import sys

if "comfy.samplers" in sys.modules:
    from .todo_lib.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
