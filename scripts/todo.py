"""ToDo in the WebUI: the script that the host loads. Its class is in `todo_lib.webui.script`."""

import logging
import sys

# "Reload UI" runs this file again, perhaps in a newer version, and todo_lib has to be of that version too.
for name in [name for name in sys.modules if name.partition(".")[0] == "todo_lib"]:
    del sys.modules[name]

try:
    from todo_lib.webui.script import ToDoScript  # noqa: F401
except ImportError as error:
    # One line, and no traceback. SD.Next is such a host.
    logging.getLogger("ToDo").warning(
        "ToDo does nothing in this WebUI, which lacks what it needs (%s). SD.Next has token downsampling of its own.",
        error,
    )
