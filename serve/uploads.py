"""Images as they were sent, encoded or as pixels. Knows nothing of HTTP or deployments."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from PIL import Image

from melanoma.errors import InvalidImageError
from melanoma.imaging.decode import (
    MAX_PIXELS,
    announced_size,
    check_content,
    decode_image,
    decoding_work,
)

MAX_REQUEST_PIXELS = 2 * MAX_PIXELS


@dataclasses.dataclass(frozen=True)
class Upload:
    """One image of a request.

    Attributes:
        content: the encoded image, or upright RGB whose size was checked.
        index: index of the image in its request, from 0.
        num_images: number of images in the request; errors name the bad one by its number.
    """

    content: bytes | Image.Image
    index: int = 0
    num_images: int = 1

    def num_pixels(self) -> int:
        """Return the number of pixels that the header announces.

        Raises:
            InvalidImageError: if the header cannot be used.
        """
        with self._named():
            width, height = (
                self.content.size
                if isinstance(self.content, Image.Image)
                else announced_size(self.content)
            )
        return width * height

    def work(self) -> int:
        """Return an estimate of the decoding work: pixels times passes, plus bytes.

        Raises:
            InvalidImageError: if the header cannot be used.
        """
        if isinstance(self.content, Image.Image):
            return self.num_pixels()
        with self._named():
            return decoding_work(self.content)

    def decode(self) -> Image.Image:
        """Return the image as upright RGB.

        Raises:
            InvalidImageError: if the image cannot be used, or shows nothing.
        """
        with self._named():
            image = (
                self.content
                if isinstance(self.content, Image.Image)
                else decode_image(self.content)
            )
            check_content(image)
        return image

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except InvalidImageError as error:
            if self.num_images == 1:
                raise
            place = f"Image {self.index + 1} of {self.num_images}: "
            raise InvalidImageError(
                place + str(error), status=error.status, code=error.code
            ) from error


def uploads_of(contents: Sequence[bytes | Image.Image]) -> list[Upload]:
    """Return the images of one request. Only their headers are read and checked.

    Args:
        contents: encoded images, or upright RGB images whose size was checked.

    Raises:
        InvalidImageError: if an image cannot be used, or all together have too many pixels.
    """
    uploads = [Upload(content, index, len(contents)) for index, content in enumerate(contents)]
    if sum(upload.num_pixels() for upload in uploads) > MAX_REQUEST_PIXELS:
        raise InvalidImageError(
            f"All images of a request together must have at most {MAX_REQUEST_PIXELS // 10**6}"
            " megapixels. Send fewer images at once.",
            status=413,
            code="image_too_large",
        )
    return uploads
