"""One image as it was sent, encoded or as pixels: how much work it will be, and the image. Knows nothing of HTTP or deployments."""

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
        content: encoded, or upright RGB of a size that was checked.
        index: of the image in its request, from 0.
        num_images: in the request; errors say which of them is at fault.
    """

    content: bytes | Image.Image
    index: int = 0
    num_images: int = 1

    def num_pixels(self) -> int:
        """Return how many pixels the header announces; raise InvalidImageError as `melanoma.images` does."""
        with self._named():
            width, height = (
                self.content.size
                if isinstance(self.content, Image.Image)
                else announced_size(self.content)
            )
        return width * height

    def work(self) -> int:
        """Return about how much work decoding will be: pixels times passes, and bytes; raise InvalidImageError."""
        if isinstance(self.content, Image.Image):
            return self.num_pixels()
        with self._named():
            return decoding_work(self.content)

    def decode(self) -> Image.Image:
        """Return upright RGB that shows something; raise InvalidImageError if it cannot be used."""
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
    """Return the images of one request, checked as far as their headers tell. Decodes nothing.

    Raises:
        InvalidImageError: if one cannot be used, or if all together have too many pixels.
    """
    uploads = [Upload(content, index, len(contents)) for index, content in enumerate(contents)]
    if sum(upload.num_pixels() for upload in uploads) > MAX_REQUEST_PIXELS:
        raise InvalidImageError(
            f"All images of a request together must have at most {MAX_REQUEST_PIXELS // 10**6}"
            " megapixels; send fewer at once.",
            status=413,
            code="image_too_large",
        )
    return uploads
