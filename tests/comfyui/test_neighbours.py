"""ToDo beside other nodes: keys, pictures, the line, and what is left behind. With --compatibility it is a table."""

import pytest

from tests.comfyui.client import Client, Workflow
from tests.comfyui.neighbours import NEIGHBOURS, ULTIMATE

pytestmark = pytest.mark.slow


def drawn(client, neighbour, *, todo, beside):
    workflow = Workflow()
    model, clip, _ = workflow.watched()
    texts = workflow.prompts(clip)
    if beside:
        model, texts = neighbour.build(workflow, model, texts)
    model = workflow.todo(model, moving=True) if todo else model
    latent = workflow.add("EmptyLatentImage", width=neighbour.width, height=neighbour.width // 2, batch_size=1)
    workflow.report(model, workflow.sample(model, *texts, latent))
    return client.reports(workflow)[0]


DEPTH_1 = ("input_blocks.1.", "input_blocks.2.", "output_blocks.9.", "output_blocks.10.", "output_blocks.11.")


@pytest.mark.parametrize("neighbour", NEIGHBOURS, ids=lambda neighbour: neighbour.name)
def test_neighbour(among_packs, neighbour, table):
    client = Client(among_packs.url)
    with table.cell(among_packs, neighbour) as cell:
        if neighbour.node and not client.get(f"/object_info/{neighbour.node}").json():
            cell.outcome = f"no {neighbour.pack or neighbour.node}"
            pytest.skip(cell.outcome)
        both = drawn(client, neighbour, todo=True, beside=True)
        attentions = [attention for call in both["calls"] for attention in call["attention"]]
        at_depth_1 = [a for a in attentions if a[0].removeprefix("control: ").startswith(DEPTH_1)]
        deeper = [attention for attention in attentions if attention not in at_depth_1]
        assert {(q, k, v) for _, _, q, k, v in at_depth_1} == {(q, k, k) for q, k in neighbour.grids}
        assert all(q == k == v for _, _, q, k, v in deeper)
        line = both["texts"][-1][1]
        assert ("left to another patch" in line) == neighbour.left, line
        alone = drawn(client, neighbour, todo=False, beside=True)
        assert both["finite"] and both["fingerprint"] == alone["fingerprint"]
        ours = drawn(client, neighbour, todo=True, beside=False)
        assert (both["hash"] == alone["hash"]) == neighbour.left and both["hash"] != ours["hash"]
        cell.outcome, cell.words = ("left", line) if neighbour.left else ("ok", "")


def test_ultimate_sd_upscale(among_packs, table):
    """A node that samples tile by tile: 9 tiles of a picture, each one a sampling of its own."""
    client = Client(among_packs.url)
    with table.cell(among_packs, ULTIMATE) as cell:
        if not client.get(f"/object_info/{ULTIMATE.node}").json():
            cell.outcome = f"no {ULTIMATE.pack}"
            pytest.skip(cell.outcome)
        reports = {}
        for todo in (True, False):
            workflow = Workflow()
            model, clip, vae = workflow.watched()
            texts = workflow.prompts(clip)
            model = workflow.todo(model, moving=True) if todo else model
            picture = workflow.add("EmptyImage", width=192, height=192, batch_size=1, color=0x3060C0)
            upscaled = workflow.add(
                ULTIMATE.node, upscaled_image=picture, model=model, positive=texts[0], negative=texts[1], vae=vae,
                seed=1, steps=4, cfg=5.0, sampler_name="euler", scheduler="normal", denoise=0.5, mode_type="Linear",
                tile_width=64, tile_height=64, mask_blur=8, tile_padding=0, seam_fix_mode="None", seam_fix_denoise=1.0,
                seam_fix_mask_blur=8, seam_fix_width=64, seam_fix_padding=16, force_uniform_tiles=True,
                tiled_decode=False, batch_size=1,
            )  # fmt: skip
            workflow.report(model, workflow.add("VAEEncode", pixels=upscaled, vae=vae))
            (reports[todo],) = client.reports(workflow)
        seen = {(q, k, v) for call in reports[True]["calls"] for name, _, q, k, v in call["attention"]
                if name.startswith(DEPTH_1)}  # fmt: skip
        assert seen == {(64, 16, 16)}
        assert reports[True]["texts"][-1][1].startswith("9 samplings: ")
        assert reports[True]["fingerprint"] == reports[False]["fingerprint"]
        assert reports[True]["hash"] != reports[False]["hash"]
        cell.outcome = "ok"
