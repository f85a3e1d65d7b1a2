"""Images and the texts in their files."""


def read_info_from_image(image):
    """Returns the infotext (None if the image has none) and all other data in the file."""
    return image.info.get("parameters"), {}
