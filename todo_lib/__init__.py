"""ToDo, token downsampling for the self-attention of diffusion U-Nets.

Smith, Saxena, Saha: "ToDo: Token Downsampling for Efficient Generation of High-Resolution Images", IJCAI 2024.
This package needs torch alone and knows no host. `Settings` says what to do, `Patch` does it, `plan` foretells it.
"""

from todo_lib.patch import Patch
from todo_lib.plan import DepthPlan, plan
from todo_lib.report import Report
from todo_lib.settings import FIELDS, Settings, SettingsError

__all__ = ["FIELDS", "DepthPlan", "Patch", "Report", "Settings", "SettingsError", "plan"]
