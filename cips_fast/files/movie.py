"""Frames to a movie: MP4, or an endlessly repeated GIF or WebP, by the file's ending."""

import contextlib
import itertools
import os
import subprocess
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

from .atomic import move_into_place, temporary_path

CRF = 18  # H.264's constant rate factor, 0 to 51: from about here on the loss is hard to see
WEBP_QUALITY = 90
SLOWEST = 0.01  # frames a second; GIF holds a frame for 655 s at most


@dataclass(frozen=True)
class Limits:
    """What a format holds, and its players play: frames a second, and pixels a side."""

    fastest: int
    longest: int
    even: bool = False


LIMITS = {
    ".mp4": Limits(fastest=240, longest=16384, even=True),  # one colour sample serves 2 × 2 pixels
    ".gif": Limits(fastest=50, longest=65535),  # browsers show a frame of 10 ms or less for 100 ms; GIF counts in 10 ms
    ".webp": Limits(fastest=90, longest=16383),  # the same in browsers; WebP counts in ms
}


class Movie:
    """A movie that frames are added to.

        with Movie("walk.mp4", fps=24, height=256, width=256) as movie:
            for frame in frames:
                movie.add(frame)

    Frames go to a file of this movie alone, which is moved to the path when the movie is whole. If the block ends with
    an exception (Ctrl-C among them), the frames so far are moved to `partial`, walk.partial.mp4, as a movie that plays;
    the path is as it was.

    MP4 is H.264 in yuv420p with BT.709 colours. It is encoded as the frames come, in memory that does not grow with the
    movie. GIF, of 256 colours a frame, and WebP repeat for ever. Pillow makes them, and needs all frames first: until
    the end they are held in memory, 1 byte a pixel for GIF and 4 for WebP.

    Args:
        path: the file, in a folder that exists; its ending is one of `LIMITS`.
        fps: frames a second, any fraction. GIF rounds every frame's end to 10 ms, WebP to 1 ms; that never adds up.
        height, width: of every frame. Both even for MP4.

    Raises:
        ValueError: an argument that the format does not hold.
        OSError: the folder does not exist, or a name is too long.
        ImportError: MP4 without imageio-ffmpeg.
    """

    def __init__(self, path: str | Path, fps: float | Fraction, height: int, width: int):
        self.path = Path(path)
        self.partial = self.path.with_name(f"{self.path.stem}.partial{self.path.suffix}")
        self.temporary = temporary_path(self.path)
        self.fps, self.height, self.width = _checked(self.path, fps, height, width), height, width
        self.frames = 0
        self.left = False  # whether frames were left at `partial`
        if not self.path.absolute().parent.is_dir():
            raise FileNotFoundError(f"path: got {str(path)!r}, whose folder does not exist")
        with contextlib.suppress(FileNotFoundError):
            os.lstat(self.partial)  # its name may be too long, which must not be found out at the end
        self._encoder = _H264(self) if self.path.suffix.lower() == ".mp4" else _Animation(self)

    def add(self, frame: np.ndarray) -> None:
        """Append a frame, uint8 [height, width, 3], RGB.

        Raises:
            ValueError: another shape or dtype, or the movie is closed.
            OSError: the file cannot be written.
        """
        if self._encoder is None:
            raise ValueError(f"frame: got one for {str(self.path)!r}, which is closed")
        if frame.shape != (self.height, self.width, 3) or frame.dtype != np.uint8:
            wanted = [self.height, self.width, 3]
            raise ValueError(f"frame: got {list(frame.shape)} of {frame.dtype}, must be {wanted} of uint8")
        self._encoder.write(np.ascontiguousarray(frame))
        self.frames += 1

    def close(self) -> None:
        """Finish the movie and move it to its path.

        Raises:
            ValueError: it has no frames.
            OSError: the file cannot be written; nothing of it is left.
        """
        if self._encoder is None:
            return
        if not self.frames:
            self._drop()
            raise ValueError(f"frames: got none for {str(self.path)!r}, must be at least 1")
        self._finish(self.path)
        self.partial.unlink(missing_ok=True)  # of an interrupted movie, which this one replaces

    def __enter__(self) -> "Movie":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._encoder is not None and not self.frames:
            self._drop()
        elif self._encoder is not None:
            # What cannot be finished either is not what the user has to hear about.
            with contextlib.suppress(OSError):
                self._finish(self.partial)
                self.left = True

    def _finish(self, path: Path) -> None:
        try:
            self._encoder.finish()
            move_into_place(self.temporary, path)
        except BaseException:
            self._drop()
            raise
        self._encoder = None

    def _drop(self) -> None:
        self._encoder.abort()
        self._encoder = None
        self.temporary.unlink(missing_ok=True)


class _H264:
    """Frames through a pipe to a process of ffmpeg, started with the first one."""

    def __init__(self, movie: Movie):
        self.movie = movie
        self.program = _ffmpeg()
        self.process: subprocess.Popen | None = None

    def write(self, frame: np.ndarray) -> None:
        if self.process is None:
            self._start()
        try:
            self.process.stdin.write(frame.data)
        except BrokenPipeError:
            self.process.wait()
            raise self._failure() from None

    def finish(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # its exit status says so, too
            self.process.stdin.close()
        if self.process.wait():
            raise self._failure()
        self.messages.close()

    def abort(self) -> None:
        if self.process is not None:
            self.process.kill()
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
            self.process.wait()
            self.messages.close()

    def _start(self) -> None:
        self.messages = tempfile.TemporaryFile()  # noqa: SIM115, for as long as the process; a pipe would fill up
        self.process = subprocess.Popen(
            [self.program, *_h264_options(self.movie)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self.messages,
            # Ctrl-C in a terminal goes to all of its group: ffmpeg shall go on until the pipe ends.
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )

    def _failure(self) -> OSError:
        self.messages.seek(0)
        lines = self.messages.read().decode(errors="replace").strip().splitlines()
        said = "; ".join(lines) or f"exit status {self.process.returncode}"
        return OSError(f"ffmpeg cannot write {str(self.movie.path)!r}: {said}")


def _ffmpeg() -> str:
    """The program that imageio-ffmpeg brings, or the one that its IMAGEIO_FFMPEG_EXE names."""
    try:
        import imageio_ffmpeg
    except ImportError:
        raise ImportError("an MP4 needs imageio-ffmpeg: pip install -e '.[video]'; GIF and WebP do without") from None
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise ImportError(f"an MP4 needs ffmpeg ({error})") from None


def _h264_options(movie: Movie) -> list[str]:
    """ffmpeg's arguments: raw RGB from the pipe, and H.264 that says which colours its numbers mean."""
    raw = f"-f rawvideo -pix_fmt rgb24 -s {movie.width}x{movie.height} -r {movie.fps} -i pipe:0"
    tags = "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
    video = f"-vf scale=out_color_matrix=bt709:out_range=tv,{tags} -pix_fmt yuv420p -c:v libx264 -crf {CRF}"
    # The index in front: a browser can begin before it has all.
    return [
        *f"-loglevel error -y {raw} -an {video} -movflags +faststart -f mp4".split(),
        str(movie.temporary.absolute()),
    ]


class _Animation:
    """Frames for Pillow, which takes all of them at once."""

    def __init__(self, movie: Movie):
        self.movie = movie
        self.gif = movie.path.suffix.lower() == ".gif"
        self.images: list[Image.Image] = []

    def write(self, frame: np.ndarray) -> None:
        image = Image.fromarray(frame)
        if self.gif:
            # Refined until one pixel in 64 changes its colour: most of what can be gained, at less than half the time.
            pixels = frame.shape[0] * frame.shape[1]
            image = image.quantize(256, Image.Quantize.MEDIANCUT, kmeans=pixels // 64)
        self.images.append(image)

    def finish(self) -> None:
        options = {"format": "GIF"} if self.gif else {"format": "WEBP", "quality": WEBP_QUALITY, "method": 4}
        first, *others = self.images
        first.save(
            self.movie.temporary,
            save_all=True,
            append_images=others,
            duration=_durations(len(self.images), self.movie.fps, unit=10 if self.gif else 1),
            loop=0,
            **options,
        )

    def abort(self) -> None:
        self.images.clear()


def _durations(frames: int, fps: Fraction, unit: int) -> list[int]:
    """How long every frame is shown, in ms: multiples of a unit, their sums within half a unit of the true times."""
    ends = [round(frame * 1000 / (fps * unit)) * unit for frame in range(frames + 1)]
    return [end - start for start, end in itertools.pairwise(ends)]


def _checked(path: Path, fps: float | Fraction, height: int, width: int) -> Fraction:
    """The frame rate, if the format that the path names holds such a movie."""
    limits = LIMITS.get(path.suffix.lower())
    if limits is None:
        raise ValueError(f"path: got {str(path)!r}, must end in {', '.join(LIMITS)}")
    if not SLOWEST <= fps <= limits.fastest:
        raise ValueError(f"fps: got {fps}, must be {SLOWEST} to {limits.fastest} for {path.suffix}")
    for name, size in (("height", height), ("width", width)):
        if not 1 <= size <= limits.longest or (limits.even and size % 2):
            even = " and even" if limits.even else ""
            raise ValueError(f"{name}: got {size}, must be 1 to {limits.longest}{even} for {path.suffix}")
    return Fraction(fps).limit_denominator(1001)
