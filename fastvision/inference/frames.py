"""The pictures in files, videos and cameras, one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from PIL import Image

from .pictures import frame_rate, read_pictures
from .sources import Source
from .video import read_video


class Frame(NamedTuple):
    """A picture of a source.

    Args:
        source: where it is from.
        picture: in RGB; None where it could not be read.
        number: of the frame in a video or animation, from 0; None in a file of one picture.
        rate: frames per second of a video or animation.
        error: why there is no picture.
    """

    source: Source
    picture: Image.Image | None
    number: int | None = None
    rate: float = 0.0
    error: str = ""


def read_frames(sources: Iterable[Source], limit: int | None = None) -> Iterator[Frame]:
    """All pictures of the sources. A source that cannot be read on ends in a frame with an error.

    Args:
        limit: largest number of pictures of a video, an animation or a camera.

    Raises:
        ModuleNotFoundError: a package that reads a source is not installed.
    """
    for source in sources:
        try:
            yield from itertools.islice(_frames(source), limit)
        except (ValueError, OSError) as error:
            yield Frame(source, None, error=str(error))


def _frames(source: Source) -> Iterator[Frame]:
    if source.is_video:
        video = read_video(source.path if source.camera is None else source.camera)
        for number, (picture, rate) in enumerate(video):
            yield Frame(source, picture, number, rate)
        return
    pictures = read_pictures(source.path)
    first = next(pictures)
    second = next(pictures, None)
    if second is None:
        yield Frame(source, first)
        return
    rate = frame_rate(source.path)
    yield Frame(source, first, 0, rate)
    yield Frame(source, second, 1, rate)
    for number, picture in enumerate(pictures, 2):
        yield Frame(source, picture, number, rate)
