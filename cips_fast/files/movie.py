"""Writing frames as a movie: MP4, or a GIF or WebP that repeats forever, by the file's ending."""

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

from ..checks import ArgumentError
from .atomic import move_into_place, temporary_path

CRF = 18  # H.264's constant rate factor, 0 (lossless) to 51; at 18, the loss is hard to see
WEBP_QUALITY = 90
MIN_FPS = 0.01  # frames a second; GIF can show a frame for at most 655 s


@dataclass(frozen=True)
class Limits:
    """What a format can hold and its players can play.

    Attributes:
        max_fps: frames a second.
        max_side: pixels.
        even: whether both sides must be even.
    """

    max_fps: int
    max_side: int
    even: bool = False


LIMITS = {
    ".mp4": Limits(max_fps=240, max_side=16384, even=True),  # 2 × 2 pixels share one colour sample
    # GIF counts in steps of 10 ms, WebP in ms. Browsers show a frame of 10 ms or less for 100 ms.
    ".gif": Limits(max_fps=50, max_side=65535),
    ".webp": Limits(max_fps=90, max_side=16383),
}


class Movie:
    """A movie to which frames are added.

        with Movie("walk.mp4", fps=24, height=256, width=256) as movie:
            for frame in frames:
                movie.add(frame)

    Frames are written to a temporary file, which is moved to the path when the movie is complete. If the block ends
    with an exception, such as Ctrl-C, the frames so far are kept in `partial`, walk.partial.mp4, as a movie that can be
    played, and the path stays as it was.

    MP4 is H.264 in yuv420p with BT.709 colours. Frames are encoded as they come, so the memory does not grow with the
    movie. GIF, with 256 colours a frame, and WebP repeat forever. Pillow writes them and needs all frames first, so
    these stay in memory until the end: 1 byte a pixel for GIF and 4 for WebP.

    Args:
        path: the file, in a folder that exists; its ending is one of `LIMITS`.
        fps: frames a second, any fraction. GIF rounds every frame's end to 10 ms, WebP to 1 ms; errors do not add up.
        height, width: size of every frame; both even for MP4.

    Raises:
        ValueError: the format cannot hold such a movie.
        OSError: the folder does not exist, or a name is too long.
        ImportError: the movie is an MP4 and imageio-ffmpeg is missing.
    """

    def __init__(self, path: str | Path, fps: float | Fraction, height: int, width: int):
        self.path = Path(path)
        self.partial = self.path.with_name(f"{self.path.stem}.partial{self.path.suffix}")
        self.temporary = temporary_path(self.path)
        self.fps = _checked(self.path, fps, height, width)
        self.height = height
        self.width = width
        self.frames = 0
        self.left = False  # whether frames were left at `partial`
        if not self.path.absolute().parent.is_dir():
            raise FileNotFoundError(f"path: got {str(path)!r}, whose folder does not exist")
        with contextlib.suppress(FileNotFoundError):
            os.lstat(self.partial)  # raises OSError now, and not at the end, if its name is too long
        self._encoder = _H264(self) if self.path.suffix.lower() == ".mp4" else _Animation(self)

    def add(self, frame: np.ndarray) -> None:
        """Append a frame, uint8 [height, width, 3], RGB.

        Raises:
            ValueError: the frame has another shape or dtype, or the movie is closed.
            OSError: the file cannot be written.
        """
        if self._encoder is None:
            raise ArgumentError("frame", f"got one for {str(self.path)!r}, which is closed")
        if frame.shape != (self.height, self.width, 3) or frame.dtype != np.uint8:
            wanted = [self.height, self.width, 3]
            raise ArgumentError("frame", f"got {list(frame.shape)} of {frame.dtype}, must be {wanted} of uint8")
        self._encoder.write(np.ascontiguousarray(frame))
        self.frames += 1

    def close(self) -> None:
        """Finish the movie and move it to its path.

        Raises:
            ValueError: it has no frames.
            OSError: the file cannot be written; then no temporary file is left.
        """
        if self._encoder is None:
            return
        if not self.frames:
            self._drop()
            raise ArgumentError("frames", f"got none for {str(self.path)!r}, must be at least 1")
        self._finish(self.path)
        self.partial.unlink(missing_ok=True)  # left by an interrupted call, whose movie this one replaces

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
            # If finishing fails, too, the user should see the first exception and not this one.
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
    """Sends frames through a pipe to an ffmpeg process, which is started with the first frame."""

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
        with contextlib.suppress(BrokenPipeError):  # then the exit status shows the failure
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
        self.messages = tempfile.TemporaryFile()  # noqa: SIM115, open as long as the process runs; a pipe would fill up
        self.process = subprocess.Popen(
            [self.program, *_h264_options(self.movie)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self.messages,
            # Ctrl-C in a terminal reaches the whole process group, but ffmpeg has to run until the pipe ends.
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )

    def _failure(self) -> OSError:
        self.messages.seek(0)
        lines = self.messages.read().decode(errors="replace").strip().splitlines()
        said = "; ".join(lines) or f"exit status {self.process.returncode}"
        return OSError(f"ffmpeg cannot write {str(self.movie.path)!r}: {said}")


def _ffmpeg() -> str:
    """The path of ffmpeg: the program in imageio-ffmpeg, or the one that IMAGEIO_FFMPEG_EXE names."""
    try:
        import imageio_ffmpeg
    except ImportError:
        raise ImportError("an MP4 needs imageio-ffmpeg: pip install -e '.[video]'; GIF and WebP do not") from None
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise ImportError(f"an MP4 needs ffmpeg ({error})") from None


def _h264_options(movie: Movie) -> list[str]:
    """ffmpeg's arguments: raw RGB from the pipe to H.264 that is tagged with its colour space."""
    raw = f"-f rawvideo -pix_fmt rgb24 -s {movie.width}x{movie.height} -r {movie.fps} -i pipe:0"
    tags = "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
    video = f"-vf scale=out_color_matrix=bt709:out_range=tv,{tags} -pix_fmt yuv420p -c:v libx264 -crf {CRF}"
    # faststart puts the index first, so that a browser can play the movie while it loads.
    return [
        *f"-loglevel error -y {raw} -an {video} -movflags +faststart -f mp4".split(),
        str(movie.temporary.absolute()),
    ]


class _Animation:
    """Collects frames for Pillow, which writes all of them at once."""

    def __init__(self, movie: Movie):
        self.movie = movie
        self.gif = movie.path.suffix.lower() == ".gif"
        self.images: list[Image.Image] = []

    def write(self, frame: np.ndarray) -> None:
        image = Image.fromarray(frame)
        if self.gif:
            # k-means stops when fewer than one pixel in 64 changes its colour. This gives most of the gain in less than
            # half of the time.
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
    """How long each frame is shown, in ms: multiples of `unit` whose sums are true to half a unit."""
    ends = [round(frame * 1000 / (fps * unit)) * unit for frame in range(frames + 1)]
    return [end - start for start, end in itertools.pairwise(ends)]


def _checked(path: Path, fps: float | Fraction, height: int, width: int) -> Fraction:
    """The frame rate; ValueError if the format that the path names cannot hold such a movie."""
    limits = LIMITS.get(path.suffix.lower())
    if limits is None:
        raise ArgumentError("path", f"got {str(path)!r}, must end in {', '.join(LIMITS)}")
    if not MIN_FPS <= fps <= limits.max_fps:
        raise ArgumentError("fps", f"got {fps}, must be {MIN_FPS} to {limits.max_fps} for {path.suffix}")
    for name, size in (("height", height), ("width", width)):
        if not 1 <= size <= limits.max_side or (limits.even and size % 2):
            even = " and even" if limits.even else ""
            raise ArgumentError(name, f"got {size}, must be 1 to {limits.max_side}{even} for {path.suffix}")
    return Fraction(fps).limit_denominator(1001)
