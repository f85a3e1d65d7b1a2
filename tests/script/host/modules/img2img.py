"""A batch of files: one job for all, whose first result is returned with the images of all."""

from modules.processing import process_images


def process_batch(p, sizes):
    """Run a job for each of these files, which have such a (width, height)."""
    results = None
    for p.width, p.height in sizes:
        done = process_images(p)
        if results:
            results.images.extend(done.images)
            results.infotexts.extend(done.infotexts)
        else:
            results = done
    return results
