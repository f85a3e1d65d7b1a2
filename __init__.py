"""The node pack for ComfyUI. The WebUI does not read this file. Tools that take this folder for a package get none."""

import sys

if "comfy.samplers" in sys.modules:
    from .todo_lib.comfyui import ToDoTokenDownsampling

    NODE_CLASS_MAPPINGS = {"ToDoTokenDownsampling": ToDoTokenDownsampling}
    NODE_DISPLAY_NAME_MAPPINGS = {"ToDoTokenDownsampling": "ToDo: Token Downsampling"}
