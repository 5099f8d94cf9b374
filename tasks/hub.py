"""The Hugging Face hub: loading its data sets, and explaining its errors in one line.

`datasets` takes seconds to import, so functions import it where they need it.
"""

import errno
import re
import textwrap
from pathlib import Path

PARQUET = "refs/convert/parquet"  # the branch in which the hub keeps the output of a loading script as Parquet
OTHERWISE = "download the files and pass --data_dir (and local folders for --teacher and --student)"


def load_hub(hub, otherwise=OTHERWISE, **options):
    """Return datasets.load_dataset of (id, configuration or None); of a loading script, the hub's converted output.

    otherwise: what to do without the network, for the message. Raises ValueError in one line for any failure.
    """
    import datasets

    name, config = hub
    try:
        try:
            return datasets.load_dataset(name, config, **options)
        except (RuntimeError, ValueError) as error:  # ValueError: the cache has another configuration
            if not re.search("scripts are no longer supported|Couldn't find cache", str(error)):
                raise
        return datasets.load_dataset(name, data_dir=_converted(name, config), revision=PARQUET, **options)
    except Exception as error:  # the hub, the network and the parser each raise their own
        raise ValueError(
            f"data set {name!r} could not be had from the Hugging Face hub "
            f"{explained(name, error, 'dataset', otherwise)}"
        ) from error


def _converted(name, config):
    """Return the folder of a configuration among a loading script's converted files; None if it has one only."""
    from huggingface_hub import HfApi, errors

    try:
        tree = HfApi().list_repo_tree(name, revision=PARQUET, repo_type="dataset")
        folders = [entry.path for entry in tree if not hasattr(entry, "blob_id")]
    except errors.RevisionNotFoundError as error:
        raise ValueError(
            "it is a loading script, which `datasets` does not run, and the hub has not converted it"
        ) from error
    if (config or folders[0]) not in folders or (len(folders) > 1 and not config):
        raise ValueError(f"its configurations are {', '.join(folders)}, and {config} is none of them")
    return config if len(folders) > 1 else None


def explained(name, error, kind, otherwise):
    """Return one line on a model or data set that cannot be loaded: the error in brackets, then the remedy.

    name: its id. kind: "model" or "dataset". otherwise: the remedy without a network.
    """
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import constants, errors

    links, text = chain(error), said(error)
    absent = (DatasetNotFoundError, errors.RepositoryNotFoundError, errors.HFValidationError, errors.HfUriError)

    def any_is(types):
        return any(isinstance(link, types) for link in links)

    lost = (errors.LocalEntryNotFoundError, ConnectionError, TimeoutError)
    unreachable = any_is(lost) or any(map(_of_network, links))
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
    """Return whether an error is the server's fault, or comes from a library for the network."""
    return status(link) >= 429 or (not status(link) and type(link).__module__.startswith(NETWORK))


def chain(error):
    """Return an error and, in order, the errors that caused it."""
    links = []
    while error and error not in links:
        links.append(error)
        error = error.__cause__ or error.__context__
    return links


def said(error):
    """Return an error's text on one line, without references to manuals; the text of its cause if that says more."""
    links = chain(error)
    told = next((link for link in links if status(link) >= 429), links[0])  # too many requests, or the server's fault
    if told.__cause__ and re.match("An error occurred while generating|Can't load|Server Disconnected", str(told)):
        told = told.__cause__
    text = re.sub(r"(For more |Check your internet|If this is a private|Example of usage).*(\n\t.*)?", "", str(told))
    return textwrap.shorten(text, 400, placeholder=" ...").rstrip(" .") or type(told).__name__


def status(error):
    """Return the HTTP status that an error holds, 0 if none."""
    return getattr(getattr(error, "response", None), "status_code", 0)


def _cached(name, kind):
    """Return the folders on this machine that hold copies of a model's or data set's files."""
    import datasets
    from huggingface_hub import constants

    hub = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"
    built = Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")
    return [str(folder) for folder in ((hub, built) if kind == "dataset" else (hub,)) if folder.is_dir()]
