"""Write a motion module with random weights for the AnimateDiff extension, in the sizes of its changed copy.

Run it with the WebUI's python:  make_motion_module.py --webui WEBUI --extension FOLDER --out FILE
"""

import argparse
import sys
from pathlib import Path

import torch


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--webui", type=Path, required=True, help="WebUI folder (its repositories/ are imported)")
    parser.add_argument("--extension", type=Path, required=True, help="the extension, whose classes are used")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    args = parser.parse_args()
    sys.path[:0] = [str(args.webui / "repositories" / "stable-diffusion-stability-ai"), str(args.extension)]
    from motion_module import MotionModuleType, MotionWrapper
    from safetensors.torch import save_file

    torch.manual_seed(10)
    module = MotionWrapper("random", "", MotionModuleType.AnimateDiffV3)
    for name, weight in module.named_parameters():
        if name.endswith("proj_out.weight"):  # zero before training
            weight.normal_(std=weight.shape[1] ** -0.5)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.contiguous() for name, weight in module.state_dict().items()}, args.out)


if __name__ == "__main__":
    main()
