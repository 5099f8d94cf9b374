"""The hub: what its errors are told as, by a small server of ours; loading scripts; weights that exist as .bin only."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote

import datasets
import huggingface_hub
import pyarrow
import pytest
import torch
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import errors
from transformers import BertConfig, BertForMaskedLM

from tasks import hub

# --- a server ---------------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does: gated/..., nobody/..., the token "bad", and the files of server.folder as tiny/bert."""

    def answer(self, status, code="", body=b"{}", **headers):
        self.send_response(status)
        if code:
            headers |= {"X-Error-Code": code, "X-Error-Message": f"the server says {code}"}
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = unquote(self.path)
        self.server.asked.append(path)
        if "bad" in self.headers.get("Authorization", ""):
            self.answer(401, X_Error_Message="Invalid credentials in Authorization header")
        elif "gated/" in path and "/resolve/" in path:
            self.answer(401, "GatedRepo")
        elif "nobody/" in path:
            self.answer(401, "RepoNotFound")
        elif "tiny/" in path and "/resolve/" in path and (file := self.server.folder / path.split("/")[-1]).is_file():
            content = file.read_bytes()
            self.answer(200, body=content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit="1" * 40)
        elif "/resolve/" in path:
            self.answer(404, "EntryNotFound", X_Repo_Commit="1" * 40)
        else:
            name = "/".join(path.split("/")[3:5])
            self.answer(200, body=json.dumps({"id": name, "sha": "1" * 40, "siblings": []}).encode())

    do_HEAD = do_POST = do_GET

    def log_message(self, *args):
        pass


SCRIPT = """
import json, os, sys
import models
from engine import command_line
from tasks import hub
command_line.quiet()
calls = {"model": lambda name: models.load_model(name, models.AutoModelForMaskedLM, "--teacher"),
         "dataset": lambda name: hub.load_hub((name, None))}
for kind, name, token in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    try:
        calls[kind](name)
        print(json.dumps("loaded"))
    except ValueError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture
def told(tmp_path):
    """told(cases): what loading each (kind, name, token) says, and what the server was asked; it serves tmp_path."""

    def tell(cases):
        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            server.folder, server.asked = tmp_path, []
            threading.Thread(target=server.serve_forever, daemon=True).start()
            env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
            env |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}
            command = [sys.executable, "-c", SCRIPT, json.dumps(cases)]
            done = subprocess.run(command, env=env, capture_output=True, text=True)
            server.shutdown()
        assert not done.returncode, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()], server.asked

    return tell


def test_each_fault_has_its_own_advice_and_weights_as_bin_only_are_read_as_they_are(told, tmp_path):
    config = BertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8)
    config.save_pretrained(tmp_path)
    torch.save(BertForMaskedLM(config).state_dict(), tmp_path / "pytorch_model.bin")
    faults = {
        "gated": [("model", "gated/bert", ""), ("dataset", "gated/news", "")],
        "absent": [("model", "nobody/bert", ""), ("dataset", "nobody/news", ""), ("model", "a/b..", "")],
        "token": [("model", "tiny/bert", "bad"), ("dataset", "tiny/news", "bad")],
        "incomplete": [("model", "empty/bert", "")],
        "none": [("model", "tiny/bert", "")],
    }
    texts, asked = told([case for cases in faults.values() for case in cases])
    assert all("\n" not in text and "check the network" not in text for text in texts)
    texts = iter(texts)
    texts = {fault: [next(texts).split("): ") for _ in cases] for fault, cases in faults.items()}
    for (said, advice), page in zip(texts["gated"], ("gated/bert", "datasets/gated/news"), strict=True):
        assert "gated" in said and advice.startswith(
            f"ask for access at https://huggingface.co/{page}, then set HF_TOK"
        )
    for said, advice in texts["absent"]:
        assert said.count("(") and advice.startswith("check its name, owner/name; for a private one set HF_TOKEN")
    for said, advice in texts["token"]:
        assert "401" in said and advice.startswith("the token in HF_TOKEN, or that of `hf auth login`, is not accepted")
    assert "config.json" in texts["incomplete"][0][0] and "HF_TOKEN" not in texts["incomplete"][0][1]
    assert texts["none"] == [["loaded"]] and any("pytorch_model.bin" in path for path in asked)
    assert not any("discussions" in path or "refs/pr" in path for path in asked)  # where converted copies are


# --- errors of which no server is needed ------------------------------------------------------------------------------


def http(status):
    """The error of an answer with this status."""
    request = SimpleNamespace(url="http://hub/x", method="GET")
    response = SimpleNamespace(status_code=status, headers={}, request=request)
    text = f"Error {status} for url\nFor more information check: https://manual"
    return errors.HfHubHTTPError(text, response=response)


def raised(error, cause=None):
    error.__cause__ = cause
    return error


BROKEN = pyarrow.ArrowInvalid("Parquet magic bytes not found")


@pytest.mark.parametrize(
    "error, text, advice",
    [
        (
            ValueError("BuilderConfig 'x' not found. Available: ['a', 'b']"),
            "Available: ['a', 'b']",
            "name one as owner/news:configuration",
        ),
        (http(503), "Error 503 for url", "check the network, then run the same command again, or take files"),
        (raised(FileNotFoundError("nothing here"), http(503)), "Error 503 for url", "check the network"),
        (http(403), "Error 403", "the token in HF_TOKEN"),
        (raised(ConnectionError("Server Disconnected"), OSError("cut off")), "cut off", "check the network"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left", "make room in "),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied", "make room in "),
        (
            raised(DatasetGenerationError("An error occurred while generating the dataset"), BROKEN),
            "magic bytes",
            "if a file is damaged, delete {hub} and {built}, then",
        ),
        (json.JSONDecodeError("Expecting value", "", 0), "Expecting value", "if a file is damaged, delete {hub} and"),
        (OSError("Expected to be able to read 9 bytes"), "read 9 bytes", "if a file is damaged, delete {hub} and"),
        (ValueError('Unknown split "train".'), 'Unknown split "train"', "choose another one, or take files"),
    ],
)
def test_the_errors_own_text_and_advice_that_fits(monkeypatch, tmp_path, error, text, advice):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "built"))
    folders = {"hub": tmp_path / "hub/datasets--owner--news", "built": tmp_path / "built/owner___news"}
    for folder in folders.values():
        folder.mkdir(parents=True)

    def fail(*args, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ValueError, match="data set 'owner/news' could not be had from the Hugging Face hub ") as found:
        hub.load_hub(("owner/news", None), "take files")
    said, _, told = str(found.value).partition("): ")
    assert text in said and told.startswith(advice.format(**folders)[:20]) and advice.format(**folders) in told
    assert "\n" not in str(found.value) and "manual" not in said


def test_offline_the_variable_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    error = ConnectionError("Couldn't reach 'owner/news' on the Hub (OfflineModeIsEnabled)")
    assert "): HF_HUB_OFFLINE=1 allows only what is in the cache already: unset it, or" in hub.explained(
        "owner/news", error, "dataset", "take files"
    )


# --- loading scripts --------------------------------------------------------------------------------------------------


SCRIPT_ERROR = RuntimeError("Dataset scripts are no longer supported, but found x.py")


@pytest.fixture
def scripted(monkeypatch):
    """scripted(folders): a hub whose data sets are loading scripts with this converted; the calls that succeed."""

    def make(folders, error=SCRIPT_ERROR):
        calls = []

        def load(name, config=None, **options):
            if options.get("revision") != "refs/convert/parquet":
                raise error
            calls.append((name, config, options))
            return "rows"

        def tree(self, name, revision, repo_type):
            if folders is None:
                raise errors.RevisionNotFoundError("404", response=http(404).response)
            yield SimpleNamespace(path=".gitattributes", blob_id="1")
            yield from (SimpleNamespace(path=folder) for folder in folders)

        monkeypatch.setattr(datasets, "load_dataset", load)
        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_tree", tree)
        return calls

    return make


@pytest.mark.parametrize(
    "folders, config, folder", [(["conll"], None, None), (["conll"], "conll", None), (["a", "b"], "b", "b")]
)
def test_a_loading_script_is_read_as_the_hub_has_converted_it(scripted, folders, config, folder):
    for error in (SCRIPT_ERROR, ValueError("Couldn't find cache for owner/old for config 'b'")):
        calls = scripted(folders, error)
        assert hub.load_hub(("owner/old", config)) == "rows"
        assert calls == [("owner/old", None, {"data_dir": folder, "revision": "refs/convert/parquet"})]


@pytest.mark.parametrize(
    "folders, config, said",
    [
        (
            ["a", "b"],
            None,
            "its configurations are a, b, and None is none of them): name one as owner/old:configuration",
        ),
        (["a"], "c", "its configurations are a, and c is none of them): name one as"),
        (None, None, "it is a loading script, which `datasets` does not run, and the hub has not converted it"),
    ],
)
def test_a_loading_script_without_that_configuration_or_copy_is_refused(scripted, folders, config, said):
    scripted(folders)
    with pytest.raises(ValueError, match="data set 'owner/old' could not be had") as error:
        hub.load_hub(("owner/old", config))
    assert said in str(error.value)
