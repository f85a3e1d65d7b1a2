"""A batch of files: one job makes them all, and returns its first result with the images of all."""

from modules.processing import process_images


def process_batch(p, sizes):
    """Run the job once for each of these files. sizes: the (width, height) of each."""
    results = None
    for p.width, p.height in sizes:
        done = process_images(p)
        if results:
            results.images.extend(done.images)
            results.infotexts.extend(done.infotexts)
        else:
            results = done
    return results
