"""The Hugging Face hub: its data sets, and what its errors mean, in one line.

`datasets`, whose import takes seconds, waits until something is wanted.
"""

import errno
import re
import textwrap
from pathlib import Path

PARQUET = "refs/convert/parquet"  # the branch in which the hub keeps, as Parquet, what a loading script makes
OTHERWISE = "download the files and pass --data_dir (and local folders for --teacher and --student)"


def load_hub(hub, otherwise=OTHERWISE, **options):
    """datasets.load_dataset of (id, configuration or None), also where the id is that of a loading script.

    `datasets` runs no scripts; the hub has converted what they make. otherwise: what to do without the network, for the
    message. Raises ValueError in one line where the data set cannot be had.
    """
    import datasets

    name, config = hub
    try:
        try:
            return datasets.load_dataset(name, config, **options)
        except (RuntimeError, ValueError) as error:  # the latter where another configuration is in the cache
            if not re.search("scripts are no longer supported|Couldn't find cache", str(error)):
                raise
        return datasets.load_dataset(name, data_dir=_converted(name, config), revision=PARQUET, **options)
    except Exception as error:  # the hub, the network and the parser each raise their own
        raise ValueError(
            f"data set {name!r} could not be had from the Hugging Face hub "
            f"{explained(name, error, 'dataset', otherwise)}"
        ) from error


def _converted(name, config):
    """Return the folder of a configuration among the converted files of a loading script; None if there is one only."""
    from huggingface_hub import HfApi, errors

    try:
        tree = HfApi().list_repo_tree(name, revision=PARQUET, repo_type="dataset")
        folders = [entry.path for entry in tree if not hasattr(entry, "blob_id")]
    except errors.RevisionNotFoundError as error:
        raise ValueError(
            "it is a loading script, which `datasets` does not run, and the hub has not converted what it makes"
        ) from error
    if (config or folders[0]) not in folders or (len(folders) > 1 and not config):
        raise ValueError(f"its configurations are {', '.join(folders)}, and {config} is none of them")
    return config if len(folders) > 1 else None


def explained(name, error, kind, otherwise):
    """Return what the error of a model or data set that could not be had says, in brackets, and what to do; one line.

    name: its id. kind: "model" or "dataset". otherwise: what to do where there is no network.
    """
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import constants, errors

    links, text = chain(error), said(error)
    absent = (DatasetNotFoundError, errors.RepositoryNotFoundError, errors.HFValidationError, errors.HfUriError)

    def any_is(types):
        return any(isinstance(link, types) for link in links)

    unreachable = any_is((errors.LocalEntryNotFoundError, ConnectionError, TimeoutError))
    unreachable = unreachable or any(map(_of_network, links))
    if any_is(errors.GatedRepoError) or "is a gated dataset" in text:
        page = f"https://huggingface.co/{'datasets/' * (kind == 'dataset')}{name}"
        advice = f"ask for access at {page}, then set HF_TOKEN to a token of the account that has it"
    elif any_is(absent):
        advice = "check its name, owner/name; for a private one set HF_TOKEN to a token that may read it"
    elif any_is(UnicodeEncodeError) or {401, 403} & set(map(status, links)):
        advice = "the token in HF_TOKEN, or that of `hf auth login`, is not accepted: set a valid one or none"
    elif any(isinstance(link, OSError) and link.errno in FOLDER_FAULTS for link in links):
        advice = f"make room in {constants.HF_HOME}, or set HF_HOME to a folder with room that can be written to"
    elif unreachable and constants.HF_HUB_OFFLINE:
        advice = f"HF_HUB_OFFLINE=1 allows only what is in the cache already: unset it, or {otherwise}"
    elif unreachable:
        advice = f"check the network, then run the same command again, or {otherwise}"
    elif re.search(r"BuilderConfig|Config name|^its configurations", text):
        advice = f"name one as {name}:configuration"
    elif type(error) not in (ValueError, ImportError) and (folders := _cached(name, kind)):
        advice = f"if a file is damaged, delete {' and '.join(folders)}, then run the same command again"
    else:
        advice = f"choose another one, or {otherwise}"
    return f"({text}): {advice}"


FOLDER_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
NETWORK = ("http", "h11", "aiohttp", "requests", "urllib3")


def _of_network(link):
    """Return whether the server was at fault, or the way to it, by a library that has errors of its own for that."""
    return status(link) >= 429 or (not status(link) and type(link).__module__.startswith(NETWORK))


def chain(error):
    """Return an error and, one after the other, those that it came from."""
    links = []
    while error and error not in links:
        links.append(error)
        error = error.__cause__ or error.__context__
    return links


def said(error):
    """Return an error's own text on one line, without references to manuals; where it says nothing, that
    of its cause.
    """
    links = chain(error)
    told = next((link for link in links if status(link) >= 429), links[0])  # too many requests, or the server's fault
    if told.__cause__ and re.match("An error occurred while generating|Can't load|Server Disconnected", str(told)):
        told = told.__cause__
    text = re.sub(r"(For more |Check your internet|If this is a private|Example of usage).*(\n\t.*)?", "", str(told))
    return textwrap.shorten(text, 400, placeholder=" ...").rstrip(" .") or type(told).__name__


def status(error):
    """Return the code of the server's answer that an error holds, 0 if none."""
    return getattr(getattr(error, "response", None), "status_code", 0)


def _cached(name, kind):
    """Folders on this machine that hold copies of a model's or data set's files."""
    import datasets
    from huggingface_hub import constants

    hub = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"
    built = Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")
    return [str(folder) for folder in ((hub, built) if kind == "dataset" else (hub,)) if folder.is_dir()]
