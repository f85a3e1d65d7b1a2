"""Whether the first half of a pass's steps was downsampled, and no other: judged by the sampler's own loop."""

# One call of the U-Net counts as a step: the number of steps is the host's budget of calls, or made so by it.
BY_CALLS = {"DPM fast", "UniPC"}


def check_first_half(record, sampler):
    """Of a generation with end 0.5."""
    short = downsampled(record)
    if sampler == "DPM adaptive" or sampler.startswith("ODE "):
        # Their steps are not known beforehand: one noise level parts the halves.
        sigmas = [call["sigma"] for call in record.calls]
        levels = {
            yes: [sigma for sigma, is_short in zip(sigmas, short, strict=True) if is_short is yes] for yes in short
        }
        assert short[0] and not short[-1]
        assert min(levels[True]) > max(levels[False]), f"{sampler}: {list(zip(sigmas, short, strict=True))}"
        return
    steps = steps_of(record, sampler)
    n = max(steps) + 1
    assert n >= 3 and steps == sorted(steps)
    assert short == [step / n < 0.5 for step in steps], f"{sampler}: steps {steps}, downsampled {short}"


def steps_of(record, sampler):
    """For each U-Net call: the number in the loop of the sampler's own function, read off the running frames."""
    if sampler in BY_CALLS:
        return [call["call"] for call in record.calls]
    assert all(call["loop"] for call in record.calls), f"{sampler} has no loop over steps"
    return [call["loop"]["number"] for call in record.calls]


def downsampled(record):
    """For each U-Net call: whether its largest grid was downsampled, all layers alike."""
    found = [{a.keys * 4 == a.queries for a in record.where(call=call["call"], depth=1)} for call in record.calls]
    assert all(len(one) == 1 for one in found)
    return [one.pop() for one in found]
