"""Other nodes that change the model or its attention, and how a workflow has them before and after ToDo."""

from collections.abc import Callable
from dataclasses import dataclass

GRIDS = ((16 * 8, 8 * 4),)


def node(kind, **inputs):
    """A neighbour that is one node: MODEL in, MODEL out."""
    return lambda workflow, model, texts: (workflow.add(kind, model=model, **inputs), texts)


def merged(workflow, model, texts):
    other = workflow.add("CheckpointLoaderSimple", ckpt_name="tinyb.safetensors")
    return workflow.add("ModelMergeSimple", model1=model, model2=other, ratio=0.5), texts


def controlled(workflow, model, texts):
    applied = workflow.add(
        "ControlNetApplyAdvanced", positive=texts[0], negative=texts[1],
        strength=0.8, start_percent=0.0, end_percent=1.0,
        control_net=workflow.add("ControlNetLoader", control_net_name="tiny.safetensors"),
        image=workflow.add("EmptyImage", width=128, height=64, batch_size=1, color=0x3060C0),
    )  # fmt: skip
    return model, [applied, applied[1]]


def regional(workflow, model, texts):
    """A prompt for the left half alone: its calls have a grid of their own."""
    area = workflow.add("ConditioningSetArea", conditioning=texts[1], width=64, height=64, x=0, y=0, strength=1.0)
    return model, [workflow.add("ConditioningCombine", conditioning_1=texts[0], conditioning_2=area), texts[1]]


def adapted(workflow, model, texts):
    adapter = workflow.add("ProbeIPAdapter", model=model)
    applied = workflow.add(
        "IPAdapterEmbeds", model=model, ipadapter=adapter, pos_embed=adapter[1], neg_embed=adapter[2], weight=1.0,
        weight_type="linear", start_at=0.0, end_at=1.0, embeds_scaling="V only",
    )  # fmt: skip
    return applied, texts


@dataclass(frozen=True)
class Neighbour:
    """What a test asks for beside ToDo.

    build: (workflow, model, [positive, negative]) -> the same with the neighbour in it, in front of ToDo.
    kind: what it does to attention, in a few words.
    left: whether some layers are left to it.
    pack: the node pack that has it, where it is not ComfyUI's own.
    node: its class, which not all versions have.
    grids: (queries, keys) of all calls at depth 1.
    width: of the picture, twice its height.
    """

    name: str
    build: Callable
    kind: str
    left: bool = False
    pack: str = ""
    node: str = ""
    grids: tuple = GRIDS
    width: int = 128


def of(name, kind_of_node, kind, left=False, pack="", grids=GRIDS, width=128, **inputs):
    return Neighbour(name, node(kind_of_node, **inputs), kind, left, pack, kind_of_node, grids, width)


NEIGHBOURS = [
    of("FreeU", "FreeU_V2", "scales the decoder's features", b1=1.3, b2=1.4, s1=0.9, s2=0.2),
    of("HyperTile", "HyperTile", "tiles instead of the grid", True, grids=((4 * 4, 16 * 8),),
       tile_size=32, swap_size=1, max_depth=0, scale_depth=False),
    of("ToMe", "TomePatchModel", "merges queries", ratio=0.5, grids=((16 * 8 // 2, 8 * 4),)),
    of("Kohya deep shrink", "PatchModelAddDownscale", "a smaller grid in the U-Net", block_number=1,
       downscale_factor=2.0, start_percent=0.0, end_percent=0.5, downscale_after_skip=True, downscale_method="bilinear",
       upscale_method="bilinear", grids=(*GRIDS, (8 * 4, 4 * 2))),
    of("PAG", "PerturbedAttentionGuidance", "one more call, without attention in the middle", scale=3.0),
    of("SAG", "SelfAttentionGuidance", "records attention in the middle", grids=((32 * 16, 16 * 8),), width=256,
       scale=0.5, blur_sigma=2.0),
    of("self-attention multiply", "UNetSelfAttentionMultiply", "other weights", q=1.1, k=1.1, v=1.0, out=1.0),
    of("LoRA", "LoraLoaderModelOnly", "other weights", lora_name="lora.safetensors", strength_model=1.0),
    Neighbour("model merging", merged, "other weights", node="ModelMergeSimple"),
    of("RescaleCFG", "RescaleCFG", "another guidance", multiplier=0.7),
    of("ModelSamplingDiscrete", "ModelSamplingDiscrete", "another noise schedule", sampling="v_prediction", zsnr=True),
    of("LazyCache", "LazyCache", "leaves U-Net calls out", reuse_threshold=3.0, start_percent=0.15, end_percent=0.95,
       verbose=False),
    Neighbour("ControlNet", controlled, "a copy of the encoder"),
    Neighbour("regional prompt", regional, "calls for a part of the picture", grids=(*GRIDS, (8 * 8, 4 * 4))),
    Neighbour("IPAdapter", adapted, "computes cross-attention", pack="ComfyUI_IPAdapter_plus", node="IPAdapterEmbeds"),
    of("Tiled Diffusion", "TiledDiffusion", "tiles of the picture", pack="ComfyUI-TiledDiffusion",
       method="MultiDiffusion", tile_width=64, tile_height=64, tile_overlap=0, tile_batch_size=1,
       grids=((8 * 8, 4 * 4),)),
]  # fmt: skip

ULTIMATE = Neighbour("Ultimate SD Upscale", node("UltimateSDUpscaleNoUpscale"), "samples tile by tile",
                     pack="ComfyUI_UltimateSDUpscale", node="UltimateSDUpscaleNoUpscale")  # fmt: skip
