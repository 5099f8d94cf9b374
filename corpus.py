"""Plain text for masked language modelling: reading, packing into full blocks, drawing masks."""
import glob
import hashlib
import json
import os
import shutil
from pathlib import Path

import datasets
import torch
from datasets import load_dataset

import runs
from data import load_hub, read_lines

BUFFER = 10_000  # blocks among which a stream is shuffled


def find_files(corpus):
    """Files of a corpus given as file, folder (all *.txt below it) or glob; None if it names none of these.

    Raises ValueError for a folder or glob without files.
    """
    path = Path(corpus)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*.txt") if p.is_file())
        if not files:
            raise ValueError(f"--corpus {corpus!r}: no .txt file in this folder")
    elif path.is_file():
        files = [path]
    elif any(c in corpus for c in "*?["):
        files = sorted(Path(p) for p in glob.glob(corpus, recursive=True) if Path(p).is_file())
        if not files:
            raise ValueError(f"--corpus {corpus!r}: no file matches")
    else:
        return None
    return [str(file) for file in files]


def load_texts(corpus, streaming=False, cache_dir=None):
    """Dataset with a column text, a document a row: lines of local files, or rows of a hub data set.

    corpus: file, folder, glob, or hub id with configuration as in wikimedia/wikipedia:20231101.en. cache_dir: where
    `datasets` puts its copy of local files; it knows a file by name and time, so a place that is kept can be outdated.
    Raises ValueError for files that are empty or not UTF-8.
    """
    files = find_files(corpus)
    if files:
        for file in files:
            if not sum(text.strip() != "" for _, text in read_lines(file)):  # a sum: decodes the whole file
                raise ValueError(f"{file}: holds no text")
        options = {"data_files": {"train": files}, "split": "train", "streaming": streaming, "cache_dir": cache_dir}
        return load_dataset("text", **options)
    if corpus.startswith((".", "/", "~")) or corpus.count("/") != 1:
        raise ValueError(f"--corpus {corpus!r}: no such file, folder or glob (and not a hub id as owner/name:config)")
    name, _, config = corpus.partition(":")
    data = load_hub((name, config or None), split="train", streaming=streaming)
    if "text" not in (data.column_names or ["text"]):
        raise ValueError(f"--corpus {corpus!r}: has no column 'text' but {', '.join(data.column_names)}")
    return data


def pack(documents, length, cls, sep):
    """Token lists of documents -> full blocks of `length` tokens: [CLS] text [SEP] text ... [SEP].

    [SEP] stands between documents and at the end, never twice in a row nor right after [CLS]. The tokens after the
    last full block are left out, and the last token of a document whose [SEP] would have to stand beside the closing
    one.
    """
    blocks, block = [], [cls]
    for tokens in documents:
        if not tokens:
            continue
        if len(block) > 1:
            if len(block) == length - 2:  # room for a separator or a word, not for both
                block.pop()
            if len(block) > 1 and block[-1] != sep:
                block.append(sep)
        at = 0
        while at < len(tokens):
            take = tokens[at : at + length - 1 - len(block)]
            block += take
            at += len(take)
            if len(block) == length - 1:
                blocks.append([*block, sep])
                block = [cls]
    return blocks


def cutter(tokenizer, length):
    """The function of a batch of rows with text -> {"input_ids": its full blocks of `length` tokens}."""

    def cut(rows):
        tokens = tokenizer(rows["text"], add_special_tokens=False, return_attention_mask=False,
                           return_token_type_ids=False, verbose=False)["input_ids"]  # fmt: skip
        return {"input_ids": pack(tokens, length, tokenizer.cls_token_id, tokenizer.sep_token_id)}

    return cut


def stream_blocks(corpus, tokenizer, length):
    """Iterable dataset with input_ids, a full block of `length` tokens a row, tokenised as it is read.

    Raises ValueError if the text does not fill one block.
    """
    texts = load_texts(corpus, streaming=True)
    blocks = texts.map(cutter(tokenizer, length), batched=True, remove_columns=texts.column_names or ["text"])
    if next(iter(blocks), None) is None:  # reading it again and again would never end
        raise too_short(corpus, length)
    return blocks


def load_blocks(corpus, tokenizer, length, cache_dir="cache"):
    """Dataset with input_ids, a full block of `length` tokens a row; tokenised once and kept on disk.

    What is on disk belongs to the text itself, not to the name or time of its files; its checksum is verified by one
    process of each machine, which costs one reading of it. Raises ValueError if the text does not fill one block, or if
    what is on disk is damaged.
    """
    tokenizer.backend_tokenizer.no_truncation()  # left from an earlier call, they would be part of the name
    tokenizer.backend_tokenizer.no_padding()
    files, texts = find_files(corpus), None
    if files is None:
        texts = load_texts(corpus)
    source = [text_digest(file) for file in files] if files else texts._fingerprint
    known = [source, length, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.backend_tokenizer.to_str()]
    known = json.dumps([*known, datasets.__version__, 2])
    folder = Path(cache_dir) / f"text-{hashlib.sha256(known.encode()).hexdigest()[:16]}"
    first = os.environ.get("LOCAL_RANK", "0") == "0"  # of this machine's processes: it alone talks and verifies
    with runs.building(folder, talk=first) as temporary:
        if temporary:
            build_blocks(corpus, texts, tokenizer, length, temporary, folder)
    if first and not temporary and (reason := runs.damage(folder, "blocks.arrow")):
        raise ValueError(f"{folder} is damaged ({reason}): delete this folder, then run the same command again")
    return datasets.Dataset.from_file(str(folder / "blocks.arrow")).with_format("torch")


def build_blocks(corpus, texts, tokenizer, length, temporary, folder):
    """Tokenise and pack a corpus in the temporary folder, which gets the name `folder` once it is whole."""
    texts = texts or load_texts(corpus, cache_dir=str(temporary / "text"))
    features = datasets.Features({"input_ids": datasets.List(datasets.Value("int32"), length=length)})
    blocks = texts.map(cutter(tokenizer, length), batched=True, remove_columns=texts.column_names, features=features,
                       new_fingerprint=folder.name, cache_file_name=str(temporary / "blocks.arrow"))  # fmt: skip
    if not len(blocks):
        raise too_short(corpus, length)
    del texts, blocks
    shutil.rmtree(temporary / "text", ignore_errors=True)
    runs.seal(temporary, folder)


def text_digest(path):
    """SHA-256 of a file's content. Raises ValueError if it cannot be read."""
    try:
        with open(path, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error


def too_short(corpus, length):
    """The error that a corpus does not fill one block."""
    return ValueError(f"--corpus {corpus!r} is shorter than one block of {length} tokens: lower --seq_length")


class Stream:
    """Blocks of a streamed corpus by number, in a shuffled order that depends on the seed alone.

    Made for numbers that rise: going back, or on after a restart, reads the stream from its beginning.
    """

    def __init__(self, blocks, seed):
        self.blocks = blocks.shuffle(seed=seed, buffer_size=BUFFER)
        self.next, self.iterator = 0, None

    def __getitem__(self, indices):
        rows = []
        for index in indices:
            if self.iterator is None or index < self.next:
                self.iterator, self.next = iter(self.blocks), 0
            while True:
                row = next(self.iterator, None)
                if row is None:  # the corpus is over: read it again
                    self.iterator = iter(self.blocks)
                    continue
                self.next += 1
                if self.next > index:
                    break
            rows.append(torch.tensor(row["input_ids"]))
        return {"input_ids": torch.stack(rows)}


def word_starts(tokenizer):
    """Bool [V]: whether a token begins a word, for whole-word masking of a WordPiece vocabulary."""
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    if not any(word.startswith("##") for word in words):
        raise ValueError("--whole_word_mask needs a WordPiece vocabulary, whose inner pieces begin with ##")
    return torch.tensor([not word.startswith("##") for word in words])


def draw_masks(ids, seeds, probability, mask_id, special, vocab_size, starts=None):
    """Mask tokens for masked language modelling, 80 % by [MASK], 10 % by a random word, 10 % left (BERT's rule).

    ids [B, T]. seeds: a number for each row, so that a row's masks do not depend on the batch it is in. special [V]:
    bool, True = never masked. starts [V]: bool from `word_starts`, for whole words. At least one token of a row is
    masked.
    Returns (ids [B, T] with masks, positions [M] in the flattened batch, labels [M]).
    """
    ids, labels, chosen = ids.clone(), ids.clone(), torch.zeros_like(ids, dtype=torch.bool)
    for row, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        able = ~special[ids[row]]
        draw = torch.rand(2, ids.shape[1], generator=generator)
        first = draw[0]
        if starts is not None:  # every piece takes the draw of its word's first piece
            first = first[torch.where(starts[ids[row]] | ~able, torch.arange(len(first)), 0).cummax(0).values]
        picked = (first < probability) & able
        if not picked.any() and able.any():
            picked = first == first[able].min()
        random = torch.randint(vocab_size, (ids.shape[1],), generator=generator)
        chosen[row] = picked
        ids[row] = torch.where(picked & (draw[1] < 0.8), mask_id, ids[row])
        ids[row] = torch.where(picked & (draw[1] >= 0.9), random, ids[row])
    positions = chosen.flatten().nonzero().squeeze(1)
    return ids, positions, labels.flatten()[positions]
