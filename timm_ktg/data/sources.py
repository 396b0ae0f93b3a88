"""Where images come from: scikit-learn's digits, a local folder, or the Hugging Face hub."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ..errors import did_you_mean, first_line

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

DIGITS = "digits"
# Only for suggestions: the user who writes `cifar100` is told the full id.
KNOWN_IDS = ("uoft-cs/cifar10", "uoft-cs/cifar100", "zh-plus/tiny-imagenet")
# Names of folders that are splits, as Datasets knows them.
_SPLIT_OF = {
    word: split
    for split, words in {
        "train": ("train", "training"),
        "validation": ("validation", "valid", "val", "dev"),
        "test": ("test", "testing", "eval", "evaluation"),
    }.items()
    for word in words
}
# Without an owner, `datasets.load_dataset("parquet")` would read every file below the working
# directory instead of asking the hub.
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def load_source(dataset: str, dataset_config: str | None = None) -> Mapping[str, Dataset]:
    """Open every split of a data set without decoding any image.

    Args:
        dataset: `digits`, a folder or a hub id; a folder wins over a hub id of the same name.
        dataset_config: The configuration of a data set that has several.

    Returns:
        The splits by name.

    Raises:
        ValueError: There is no such data set or configuration, or it cannot be read.
    """
    if is_in_files(dataset):
        if dataset_config is not None:
            raise ValueError(
                f"data.dataset_config: should be left out, `{dataset}` has no configurations. "
                f"Found `{dataset_config}`."
            )
        return _load_digits() if dataset == DIGITS else _load_saved(Path(dataset).expanduser())
    path = _path_of(dataset)
    own: dict[str, Any] = _files_by_split(path)
    if (Path(path) / "README.md").is_file():
        own["cache_dir"] = _own_cache(Path(path))
    return _load(dataset, path, dataset_config, **own)


def load_streamed(
    dataset: str, dataset_config: str | None = None, columns: Sequence[str] | None = None
) -> Mapping[str, IterableDataset]:
    """Open every split of a folder or of a data set on the hub to read it in order.

    Args:
        dataset: A folder or a hub id.
        dataset_config: The configuration of a data set that has several.
        columns: The only columns to read, where the files are parquet; None: all.

    Returns:
        The splits by name; their images are not decoded.

    Raises:
        ValueError: There is no such data set or configuration, or it cannot be read.
    """
    options: dict[str, Any] = {} if columns is None else {"columns": list(columns)}
    path = _path_of(dataset)
    options |= _files_by_split(path)
    return _load(dataset, path, dataset_config, streaming=True, **options)


def is_in_files(dataset: str) -> bool:
    """Return whether a data set is `digits` or what `save_to_disk` wrote.

    Raises:
        ValueError: The name is no path.
    """
    try:
        return dataset == DIGITS or _is_saved(Path(dataset).expanduser())
    except (OSError, RuntimeError, ValueError) as error:  # too long, or ~nobody
        what = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"data.dataset: `{dataset[:100]}` is no path: {what}") from error


def is_image_folder(dataset: str, splits: Mapping[str, IterableDataset]) -> bool:
    """Return whether a data set is a local folder of image files."""
    is_local = Path(dataset).expanduser().is_dir()
    return is_local and all(split.info.builder_name == "imagefolder" for split in splits.values())


def split_named(word: str) -> str:
    """Return the split that a folder of this name holds; the name itself, if it says nothing."""
    return _SPLIT_OF.get(word.lower(), word)


def _files_by_split(path: str) -> dict[str, Any]:
    """Return which files of a local folder belong to which split, where its folders say so.

    Datasets looks for words such as `train` anywhere in a path: it would put the test images of a
    class called `train` into the training split, too, and leave other classes out.

    Args:
        path: The folder, or a hub id.

    Returns:
        The argument for `load_dataset`; none, if the folder does not say, or its card does.

    Raises:
        ValueError: Datasets would read other images, or leave some out.
    """
    folder = Path(path)
    if not folder.is_dir():
        return {}
    if _states_files(folder / "README.md"):
        _refuse_patterns(path)
        return {}
    inside = [each for each in sorted(folder.iterdir()) if _is_visible_folder(each)]
    splits = [each for each in inside if each.name.lower() in _SPLIT_OF]
    is_flat = len(inside) > len(splits) and all(map(_holds_images, inside))
    for each in [folder] if is_flat else splits:
        _refuse_left_out(folder, each)
    if is_flat:
        return {"data_files": {"train": f"{glob.escape(path)}/**"}}
    files: dict[str, list[str]] = {}
    for each in splits:
        files.setdefault(split_named(each.name), []).append(f"{glob.escape(str(each))}/**")
    if not files:
        _refuse_patterns(path)
    return {"data_files": files} if files else {}


def _states_files(card: Path) -> bool:
    """Return whether a data set's card says which files are which split."""
    return card.is_file() and "configs:" in card.read_text(encoding="utf-8", errors="replace")


def _is_visible_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith((".", "__"))


def _holds_images(folder: Path) -> bool:
    """Return whether a folder holds an image file itself; hidden ones do not count."""
    from PIL import Image

    endings = Image.registered_extensions()
    return any(
        each.suffix.lower() in endings and each.is_file()
        for each in folder.iterdir()
        if not each.name.startswith(".")
    )


def _refuse_left_out(folder: Path, root: Path) -> None:
    """Raise ValueError if Datasets would leave out images below a folder, and not say so.

    Args:
        folder: The data set, which messages leave out of a path.
        root: The folder to look through; hidden folders are not looked into.
    """
    for parent, names, _ in os.walk(root):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for each in (Path(parent, name) for name in names):
            where = f"data.dataset: `{each.relative_to(folder)}` should"
            if each.is_symlink():
                raise ValueError(
                    f"{where} be a folder. Found a link to one, which Datasets does not follow; "
                    "links to files are read."
                )
            if each.name.startswith("__") and _holds_images(each):
                raise ValueError(
                    f"{where} not begin with `__`, because Datasets leaves such folders out. Give "
                    "it another name, or move it away."
                )


def _refuse_patterns(path: str) -> None:
    """Raise ValueError if Datasets would take a folder's name for a pattern."""
    if glob.escape(path) != path:
        raise ValueError(
            f"data.dataset: `{path}` should not have *, ? or [ in its name, because Datasets takes "
            "it for a pattern."
        )


def _path_of(dataset: str) -> str:
    """Return what Datasets knows a folder or a data set on the hub by."""
    folder = Path(dataset).expanduser()
    if folder.is_dir():
        if "::" in str(folder.resolve()):
            raise ValueError(
                f"data.dataset: `{dataset}` should have no `::` in its path, because Datasets "
                "takes it for the end of the path."
            )
        # The path is absolute because Datasets takes a folder named like a builder for the builder.
        return str(folder.resolve())
    if not HUB_ID.fullmatch(dataset):
        _refuse(dataset, "is no folder and no hub id")
    return dataset


def _own_cache(folder: Path) -> str:
    """Return where Datasets keeps what it makes of a folder with a card.

    Datasets knows such a folder by its name and the card alone. Another folder of that name, or the
    same one with other files, would give the images that were there before.
    """
    from datasets import config

    files = [(str(each), each.stat()) for each in sorted(folder.rglob("*")) if each.is_file()]
    state = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in files]
    digest = hashlib.sha256(repr(state).encode()).hexdigest()[:16]
    return str(Path(config.HF_DATASETS_CACHE) / f"timm_ktg-{digest}")


@cache  # a search reads them several times, and scikit-learn parses text
def _load_digits() -> Mapping[str, Dataset]:
    """Return the 8x8 digits, 1,437 to train on and every fifth of each class, 360, to test on."""
    from datasets import ClassLabel, Dataset, Features, Image
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    is_test = np.zeros(len(labels), dtype=bool)
    # Counted, not drawn, so that no release of scikit-learn or NumPy moves an image.
    is_test[np.argsort(labels, kind="stable")[::5]] = True
    features = Features({"image": Image(), "label": ClassLabel(names=list("0123456789"))})
    return {
        name: Dataset.from_dict({"image": list(images[rows]), "label": labels[rows]}, features)
        for name, rows in (("train", ~is_test), ("test", is_test))
    }


def _is_saved(folder: Path) -> bool:
    """Return whether `save_to_disk` wrote the folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _load_saved(folder: Path) -> dict[str, Dataset]:
    """Open what `save_to_disk` wrote: one split, or several."""
    from datasets import Dataset, load_from_disk

    try:
        saved = load_from_disk(str(folder))
    except Exception as error:  # all kinds, and all for the user to fix
        # Datasets saves an empty split, but fails to load it.
        why = "a split is empty" if isinstance(error, IndexError) else first_line(error)
        raise ValueError(f"data.dataset: `{folder}` cannot be read: {why}.") from error
    return {str(saved.split or "train"): saved} if isinstance(saved, Dataset) else dict(saved)


def _load(dataset: str, path: str, dataset_config: str | None, **options: Any) -> Mapping[str, Any]:
    """Let Datasets read a folder or a hub id, and turn its many errors into one line."""
    from datasets import config, load_dataset
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import (
        DataFilesNotFoundError,
        DatasetGenerationError,
        DatasetNotFoundError,
    )

    try:
        splits: Mapping[str, Any] = load_dataset(path, dataset_config, **options)
    except (EmptyDatasetError, DataFilesNotFoundError) as error:
        _refuse(dataset, "holds no parquet, arrow or image files", error)
    except DatasetNotFoundError as error:
        _refuse(dataset, "is no folder, and not on the hub or not yours to read", error)
    except ConnectionError as error:
        why = "Datasets is in offline mode" if config.HF_HUB_OFFLINE else "it does not answer"
        _refuse(dataset, f"is no folder, and the hub cannot be reached ({why})", error)
    except Exception as error:  # all kinds, and all for the user to fix
        if isinstance(error, ValueError):
            _check_config(path, dataset_config)
        # Datasets' own error while it reads says nothing but that there was one.
        is_empty = isinstance(error, DatasetGenerationError)
        cause = error.__cause__ if is_empty and error.__cause__ else error
        said = first_line(cause)
        if isinstance(cause, UnicodeEncodeError):
            said = f"the name {cause.object!a} is not UTF-8"
        _refuse(dataset, f"cannot be read: {said}", error)
    return splits


def _check_config(path: str, dataset_config: str | None) -> None:
    """Refuse a missing or an unknown configuration."""
    from datasets import get_dataset_config_names

    names = get_dataset_config_names(path)
    listed = f"Configurations: {', '.join(names)}."
    if dataset_config is None and len(names) > 1:
        raise ValueError(f"data.dataset_config: should be chosen, none found. {listed}")
    if dataset_config is not None and dataset_config not in names:
        raise ValueError(
            f"data.dataset_config: `{dataset_config}` is no configuration. {listed}"
            f"{did_you_mean(dataset_config, names)}"
        )


def _refuse(dataset: str, what: str, cause: Exception | None = None) -> NoReturn:
    """Raise the error about a data set, with the nearest name that exists."""
    parent = Path(dataset).expanduser().parent
    # Neighboring folders are suggested as the user would have to write them.
    prefix = dataset[: dataset.rfind("/") + 1]
    folders = [prefix + path.name for path in parent.glob("*") if path.is_dir()]
    near = did_you_mean(dataset, [DIGITS, *KNOWN_IDS, *folders])
    near = "" if f"`{dataset}`" in near else near
    raise ValueError(
        f"data.dataset: `{dataset}` {what}. Should be `{DIGITS}`, a folder of parquet, arrow or "
        f"image files, or a hub id `owner/name`.{near}"
    ) from cause
