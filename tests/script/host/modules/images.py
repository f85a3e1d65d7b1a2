"""Images and the texts in their files."""


def read_info_from_image(image):
    """The infotext, or None where the image has none, and what else stands in the file."""
    return image.info.get("parameters"), {}
