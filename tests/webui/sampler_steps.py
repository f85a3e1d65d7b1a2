"""Check that exactly the first half of a pass's steps was downsampled, judged by the sampler's own loop."""

# Here one call of the U-Net counts as a step, because the number of steps is the host's budget of calls.
BY_CALLS = {"DPM fast", "UniPC"}

SECOND_ORDER = {"Heun", "DPM2", "DPM2 a", "DPM++ 2S a", "DPM++ SDE", "Restart"}


def second_order_step(sampler, call):
    """The step of a call of the U-Net by a sampler that makes two calls a step. None for other samplers."""
    return call // 2 if sampler in SECOND_ORDER else None


def check_first_half(record, sampler):
    """Check a generation with end 0.5."""
    short = downsampled(record)
    if sampler == "DPM adaptive" or sampler.startswith("ODE "):
        # Their steps are not known beforehand. All calls of a step, retries included, belong to the noise that the
        # step begins with: once dense, always dense. A solver that reports no steps goes by the noise of each call. One
        # noise level parts the halves, and the solver may stay above it to the end.
        levels = [(call["sigma"], yes) for call, yes in zip(record.calls, short, strict=True)]
        assert short[0] and (sampler != "DPM adaptive" or not short[-1]), f"{sampler}: {levels}"
        dense = [sigma for sigma, yes in levels if not yes]
        in_order = short == sorted(short, reverse=True)
        parted = not dense or min(sigma for sigma, yes in levels if yes) > max(dense)
        assert in_order or (parted and sampler != "DPM adaptive"), f"{sampler}: {levels}"
        return
    steps = steps_of(record, sampler)
    n = max(steps) + 1
    assert n >= 3 and steps == sorted(steps)
    assert short == [step / n < 0.5 for step in steps], f"{sampler}: steps {steps}, downsampled {short}"


def steps_of(record, sampler):
    """For each U-Net call, the number in the loop of the sampler's own function, read from the running frames."""
    if sampler in BY_CALLS:
        return [call["call"] for call in record.calls]
    loops = [call["loop"] for call in record.calls]
    assert loops[-1], f"{sampler} has no loop over steps"
    before = loops[0] is None  # calls before the loop count as a step
    return [loop["number"] + before if loop else 0 for loop in loops]


def downsampled(record):
    """For each U-Net call, whether its largest grid was downsampled in all layers alike."""
    found = [{a.keys * 4 == a.queries for a in record.where(call=call["call"], depth=1)} for call in record.calls]
    assert all(len(one) == 1 for one in found)
    return [one.pop() for one in found]
