"""The path of the package's cache folder. Importing this module needs neither Triton nor a GPU."""

import os
from pathlib import Path

VARIABLE = "CIPS_FAST_CACHE"


def cache_folder() -> Path:
    """The package's cache: the environment variable CIPS_FAST_CACHE, else the user's cache folder.

    Returns:
        An absolute path. The folder may not exist yet.

    Raises:
        OSError: the folder is not known, because the user has no home folder or platformdirs is not installed. Callers
            treat this like a folder that cannot be written.
    """
    named = os.environ.get(VARIABLE)
    try:
        return Path(named or _of_the_user()).expanduser().absolute()
    except RuntimeError:  # expanduser found no home folder
        where = f"{VARIABLE}: got {named!r}, and" if named else f"{VARIABLE} is not set, and"
        raise OSError(f"{where} there is no such home folder") from None


def _of_the_user() -> str:
    try:
        import platformdirs  # here, because it is needed only if the variable is not set
    except ModuleNotFoundError:
        raise OSError(f"{VARIABLE} is not set, and platformdirs is not installed") from None
    return platformdirs.user_cache_dir("cips_fast")
