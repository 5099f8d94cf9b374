"""Plain text for masked language modelling: texts, full blocks of tokens, streams, and masks."""

import filecmp
import hashlib
import itertools
import json
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node

from data import id_count, whole_texts
from engine import checkpoints, run_folder
from tasks.documents import FORMS, check_column, documents, find_files, form_of, no_column
from tasks.hub import load_hub, said
from tasks.readers import ending

DOCUMENTS = 1000  # documents that are tokenised and packed together
POOL = 10_000  # blocks of a stream that are shuffled together
FEATURES = datasets.Features({"text": datasets.Value("string")})


def files_of(corpora):
    """Return all files of {language: corpora}; hub data sets have none."""
    return [file for own in corpora.values() for corpus in own for file in find_files(corpus) or ()]


def shared_text(corpora, others):
    """Return the first `shared_file` of two corpora of {language: corpora}; None if they share no text."""
    pairs = itertools.product(*(itertools.chain.from_iterable(of.values()) for of in (corpora, others)))
    return next(filter(None, itertools.starmap(shared_file, pairs)), None)


def shared_file(corpus, other):
    """Return a file of `other` that is also in the corpus, by name or content, or the hub id of both; else None."""
    ours, theirs = find_files(corpus), find_files(other)
    if ours is None or theirs is None:
        return corpus if corpus == other else None
    sizes = {}
    for file in ours:
        sizes.setdefault(os.path.getsize(file), []).append(file)
    for file in theirs:
        for own in sizes.get(os.path.getsize(file), ()):
            if os.path.samefile(own, file) or filecmp.cmp(own, file, shallow=False):
                return file
    return None


def check_name(corpus):
    """Raise ValueError for a corpus that is no file, folder or glob and cannot be a hub id either."""
    is_path = corpus.startswith((".", "/", "~")) or corpus.count("/") != 1 or ending(corpus) in FORMS
    if find_files(corpus) is None and is_path:
        raise ValueError(f"corpus {corpus!r}: no such file, folder or glob (and not a hub id as owner/name:config)")


def load_texts(corpus, streaming=False, cache_dir=None, column="text"):
    """Return a Dataset with a column text, a document a row: lines or rows of local files, or rows of a hub data set.

    corpus: what `documents.find_files` takes, or a hub id as in wikimedia/wikipedia:20231101.en. cache_dir: where to
    copy local files, if not to the shared cache. column: of tables, the one with the text. Raises ValueError for files
    that are unreadable or without text, and for a missing column or one that is not text.
    """
    if files := find_files(corpus):
        read = {"gen_kwargs": {"files": files, "column": column}, "features": FEATURES}
        if streaming:
            for _ in documents(files, column):  # reports errors at once, not after hours
                pass
            return datasets.IterableDataset.from_generator(documents, **read)
        known = None if cache_dir else datasets.fingerprint.Hasher.hash(text_source(files, column))
        try:
            return datasets.Dataset.from_generator(documents, **read, cache_dir=cache_dir, fingerprint=known)
        except datasets.exceptions.DatasetGenerationError as error:
            if isinstance(error.__cause__, ValueError):  # raised by `documents`
                raise ValueError(str(error.__cause__)) from error
            raise
    check_name(corpus)
    name, _, config = corpus.partition(":")
    data = load_hub((name, config or None), "download its files and name them", split="train", streaming=streaming)
    if data.features:
        check_column(f"corpus {corpus!r}", column, data.features)
    elif column not in (there := next(iter(data))):  # a stream without known features
        raise no_column(f"corpus {corpus!r}", column, there)
    data = data.select_columns([column])
    return data if column == "text" else data.rename_column(column, "text")


def text_source(files, column):
    """Return what the documents of files depend on: for each its form, content digest and, for tables, the column."""
    forms = map(form_of, files)
    return [[form, text_digest(file), *[column] * (form != "text")] for form, file in zip(forms, files, strict=True)]


def pack(documents, length, cls, sep):
    """Pack the token ids of documents (arrays) into full blocks [N, length]: [CLS] text [SEP] text ... [SEP].

    [SEP] is between documents and at the end, never twice in a row nor right after [CLS]. Left out are the tokens
    after the last full block, and the last token of a document whose own [SEP] would be next to the closing one.
    """
    inner = length - 2  # tokens between the [CLS] and [SEP] of a block
    pieces, total, separator = [], 0, np.array([sep])
    for tokens in documents:
        if not len(tokens):
            continue
        if total % inner:
            if total % inner == inner - 1:  # room for a separator or a token, not for both
                pieces[-1] = pieces[-1][:-1]
                if not len(pieces[-1]):
                    pieces.pop()
                total -= 1
            if total % inner and pieces[-1][-1] != sep:
                pieces.append(separator)
                total += 1
        pieces.append(tokens)
        total += len(tokens)
    blocks = np.empty((total // inner, length), dtype=np.int64)
    if len(blocks):
        blocks[:, 0], blocks[:, -1] = cls, sep
        blocks[:, 1:-1] = np.concatenate(pieces)[: len(blocks) * inner].reshape(-1, inner)
    return blocks


def id_type(count):
    """Return the name of the narrowest unsigned integer type that holds the token ids below count."""
    return np.min_scalar_type(max(count - 1, 1)).name


def whole_rows(documents, length, cls, sep, pad):
    """Return [N, length], a row for each document (array of token ids): [CLS], its first tokens, [SEP], padding.

    A document without tokens has no row.
    """
    documents = [tokens[: length - 2] for tokens in documents if len(tokens)]
    rows = np.full((len(documents), length), pad, dtype=np.int64)
    for row, tokens in zip(rows, documents, strict=True):
        row[0], row[1 : len(tokens) + 1], row[len(tokens) + 1] = cls, tokens, sep
    return rows


def cutter(tokenizer, length, whole=False):
    """Return the function from a list of texts (None: no words) to blocks [N, length]: full ones, or one a text."""
    backend, kind = tokenizer.backend_tokenizer, id_type(id_count(tokenizer))
    whole_texts(tokenizer)
    ids = {"cls": tokenizer.cls_token_id, "sep": tokenizer.sep_token_id}

    def cut(texts):
        """Return the blocks of some texts."""
        encodings = backend.encode_batch_fast([text or "" for text in texts], add_special_tokens=False)
        tokens = [np.array(encoding.ids, dtype=kind) for encoding in encodings]
        blocks = whole_rows(tokens, length, **ids, pad=tokenizer.pad_token_id) if whole else pack(tokens, length, **ids)
        return blocks.astype(kind)

    return cut


def load_blocks(corpus, tokenizer, length, num_proc=0, cache_dir="cache", column="text", whole=False):
    """Return a Dataset with input_ids: a full block of `length` tokens a row, or, if whole, a padded text a row.

    corpus, column: see `load_texts`. num_proc processes (0: one a core) tokenise it once, into a folder whose name
    depends on the text itself, not on file names or times. One process of each machine verifies its checksum, which
    costs one reading of it. Raises ValueError if the text does not fill one block or the folder is damaged;
    TrainingError if the disk is full.
    """
    cut, files, texts = cutter(tokenizer, length, whole), find_files(corpus), None
    if files is None:
        texts = load_texts(corpus, column=column)
    source = text_source(files, column) if files else texts._fingerprint
    known = [source, length, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.backend_tokenizer.to_str()]
    known = json.dumps([*known, datasets.__version__, 4, *["whole", tokenizer.pad_token_id] * whole])
    folder = Path(cache_dir) / f"text-{hashlib.sha256(known.encode()).hexdigest()[:16]}"
    first = os.environ.get("LOCAL_RANK", "0") == "0"  # on this machine: it alone prints and verifies
    with checkpoints.building(folder, talk=first) as temporary:
        if temporary:
            try:
                texts = texts or load_texts(corpus, cache_dir=str(temporary / "text"), column=column)
                build_blocks(corpus, texts, cut, id_type(id_count(tokenizer)), length, num_proc, temporary, folder)
            except Exception as error:  # datasets wraps errors of the disk
                if (reason := run_folder.disk_error(error)) not in run_folder.FULL:
                    raise
                raise run_folder.TrainingError(
                    f"{folder} cannot be written ({reason}): make room, then run the same command again"
                ) from error
    if first and not temporary and (reason := checkpoints.damage(folder, "blocks.json")):
        raise ValueError(f"{folder} is damaged ({reason}): delete this folder, then run the same command again")
    parts = [datasets.Dataset.from_file(str(path)) for path in sorted(folder.glob("blocks*.arrow"))]
    return datasets.concatenate_datasets(parts)


def cores():
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def build_blocks(corpus, texts, cut, kind, length, num_proc, temporary, folder):
    """Tokenise and pack a corpus in the temporary folder, and rename it to `folder` once it is whole."""
    parts = datasets.Dataset.from_dict({"part": range(-(-len(texts) // DOCUMENTS))})
    parent = os.getpid()

    def cut_part(rows):
        """Return the blocks of one part of the corpus; `map` calls it in a process of its own."""
        if parent not in (os.getpid(), os.getppid()):  # the run was killed: end with it
            os._exit(1)
        (part,) = rows["part"]
        return {"input_ids": cut(texts[part * DOCUMENTS : (part + 1) * DOCUMENTS]["text"])}

    num_proc = min(num_proc or cores(), len(parts))
    if num_proc > 1:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the processes use all cores already
    if len(texts) > 100 * DOCUMENTS:
        print(f"{folder}: {len(texts)} documents, tokenised once, in {num_proc} processes", flush=True)
    # One part a call, so that the number of processes does not change the blocks.
    blocks = parts.map(
        cut_part,
        batched=True,
        batch_size=1,
        remove_columns="part",
        features=datasets.Features({"input_ids": datasets.List(datasets.Value(kind), length=length)}),
        new_fingerprint=folder.name,
        desc="tokenising",
        cache_file_name=str(temporary / "blocks.arrow"),
        num_proc=num_proc if num_proc > 1 else None,
    )
    if not len(blocks):
        raise ValueError(f"corpus {corpus!r} is shorter than one block of {length} tokens: lower --seq_length")
    run_folder.write_json(temporary / "blocks.json", {"blocks": len(blocks), "length": length, "ids": kind})
    shutil.rmtree(temporary / "text", ignore_errors=True)
    checkpoints.seal(temporary, folder)


class Rows:
    """The rows of a column of equally long lists, read from the Dataset's own memory; a selection is copied first."""

    def __init__(self, dataset, column="input_ids"):
        found = dataset.with_format("arrow")[:][column]
        chunks = [found.combine_chunks()] if found.num_chunks == len(found) else found.chunks  # selected rows lie apart
        self.parts = [chunk.flatten().to_numpy().reshape(len(chunk), -1) for chunk in chunks if len(chunk)]
        self.ends = np.cumsum([len(part) for part in self.parts])
        self.starts = [0, *self.ends.tolist()]

    def __getitem__(self, indices):
        """Return the rows with these numbers as a NumPy array [B, T]."""
        which = np.searchsorted(self.ends, indices, side="right").tolist()
        return np.stack([self.parts[w][i - self.starts[w]] for w, i in zip(which, indices, strict=True)])

    def lengths(self, pad):
        """Return the number of tokens before the padding of each row, an array."""
        return np.concatenate([lengths_of(part, pad) for part in self.parts])


def lengths_of(rows, pad):
    """Return the number of tokens before the padding of each row: [N, T] -> [N]."""
    return rows.shape[1] - np.argmax(rows[:, ::-1] != pad, 1)


def shares(sizes, exponent):
    """Return {language: blocks in an epoch} of {language: blocks}: shares to the power of the exponent, normalised.

    An epoch has as many blocks as there are. Source: the exponentially smoothed weighting of multilingual BERT.
    """
    total, powers = sum(sizes.values()), {language: size**exponent for language, size in sizes.items()}
    counts = {language: round(total * power / sum(powers.values())) for language, power in powers.items()}
    counts[max(counts, key=counts.get)] += total - sum(counts.values())
    return counts


def epoch_order(sizes, counts, seed, epoch):
    """Return the numbers of an epoch's blocks in random order, a tensor; it depends on seed and epoch alone.

    sizes: {language: blocks}; the languages follow each other. counts: from `shares`. A language with fewer blocks than
    its count begins again; the total of blocks is then added to a block's number, so that it gets other masks.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order, start, total = [], 0, sum(sizes.values())
    for language, size in sizes.items():
        turns = range(-(-counts[language] // size))
        own = [start + turn * total + torch.randperm(size, generator=generator) for turn in turns]
        order.append(torch.cat([*own, torch.empty(0, dtype=torch.long)])[: counts[language]])
        start += size
    order = torch.cat(order)
    return order if len(sizes) == 1 else order[torch.randperm(len(order), generator=generator)]


def text_digest(path):
    """Return the SHA-256 of a file's content. Raises ValueError if it cannot be read."""
    try:
        with open(path, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error


class Stream:
    """One share of a streamed corpus: its blocks, again and again, shuffled within pools.

    texts: IterableDataset with a column text. cut: from `cutter`. share: (number, of how many); shares read different
    files if their number divides that of the files, else each reads every n-th batch of documents. position: a former
    `position` to continue from: only the documents of its pool are read and tokenised again. name: of the corpus, in
    messages.
    """

    def __init__(self, texts, cut, seed, share=(0, 1), position=None, pool=None, name=""):
        self.cut, self.seed, self.size, self.own_files = cut, seed, pool or POOL, texts.num_shards % share[1] == 0
        self.share, self.texts, self.name = share, texts, f"{name}: the text" if name else "the text"
        self.now = {"source": None, "batch": 0, "pool": -1, "at": 0}  # source and batch: where the next pool begins
        self.start, self.pool = self.now, ()
        if position:
            self.now = {**position, "pool": position["pool"] - 1}
        self._open()
        if position:
            self._fill()
            self.start["at"] = position["at"]

    @property
    def position(self):
        """Where the next block comes from, as JSON holds it."""
        return dict(self.start)

    def take(self, count):
        """Return the next `count` blocks, [count, T]. Raises ValueError if the whole share does not fill one block."""
        rows = []
        while count:
            if self.start["at"] == len(self.pool):
                self._fill()
            rows.append(self.pool[self.start["at"] :][:count])
            self.start["at"] += len(rows[-1])
            count -= len(rows[-1])
        return np.concatenate(rows)

    def _open(self):
        """Begin to read at self.now."""
        number, shares = self.share if self.own_files else (0, 1)
        self.part = split_dataset_by_node(self.texts, rank=number, world_size=shares)
        if self.now["source"]:
            self.part.load_state_dict(self.now["source"])
        self.batches = self.part.iter(batch_size=DOCUMENTS)

    def _next_batch(self):
        """Return the next batch of documents, None at the end of the text. Raises TrainingError."""
        try:
            return next(self.batches, None)
        except Exception as error:  # the network and the parsers each raise their own
            raise run_folder.TrainingError(
                f"{self.name} cannot be read any further: {said(error)}; once it can, the same command continues from "
                "its last checkpoint"
            ) from error

    def _fill(self):
        """Make the next pool: `size` blocks or a few more, or fewer at the end of the text."""
        self.start = {**self.now, "pool": self.now["pool"] + 1, "at": 0}
        found, count = [], 0
        while count < self.size:
            rows = self._next_batch()
            if rows is None:
                self.now = {**self.now, "source": None, "batch": 0}
                self._open()
                if count:
                    break
                if self.start["batch"] == 0:
                    raise ValueError(
                        f"{self.name}, or one of its {self.share[1]} shares, is shorter than one block: "
                        "lower --seq_length or leave out --streaming"
                    )
                self.start |= {"source": None, "batch": 0}
                continue
            if self.own_files or self.now["batch"] % self.share[1] == self.share[0]:
                found.append(self.cut(rows["text"]))
                count += len(found[-1])
            self.now = {**self.now, "source": self.part.state_dict(), "batch": self.now["batch"] + 1}
        self.now["pool"] = self.start["pool"]
        order = np.random.Generator(np.random.Philox([self.seed, self.start["pool"]])).permutation(count)
        self.pool = np.concatenate(found)[order]


def unknown_share(ids, tokenizer):
    """Return the share of the unknown token among it and all tokens with letters; 1 if all tokens are special.

    ids: array of token ids.
    """
    words = tokenizer.convert_ids_to_tokens(range(id_count(tokenizer)))
    lettered = np.array([any(c.isalpha() for c in word or "") for word in words])
    lettered[tokenizer.all_special_ids] = False
    lost, known = (ids == tokenizer.unk_token_id).sum(), lettered[ids].sum()
    return 1.0 if np.isin(ids, tokenizer.all_special_ids).all() else lost / max(1, lost + known)


def word_starts(tokenizer):
    """Return bool [V], True = the token begins a word, for whole-word masking with WordPiece.

    An id without a token counts as True. Raises ValueError for other vocabularies, even if they hold ## as a token.
    """
    inner = getattr(tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None)
    starts = np.ones(id_count(tokenizer), dtype=bool)
    if inner:
        starts[[i for word, i in tokenizer.get_vocab().items() if word.startswith(inner)]] = False
    if starts.all():
        raise ValueError("--whole_word_mask needs a WordPiece vocabulary, whose inner pieces begin with ##")
    return starts


GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x):
    """Return SplitMix64's output function (Steele, Lea, Flood, OOPSLA 2014) of an array uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def row_seeds(seed, epoch, blocks):
    """Return the mask seeds of some blocks, uint64 [B], from the run's seed, the epoch and the blocks' numbers."""
    one = mix(np.array([seed], dtype=np.uint64) + GOLDEN)
    one = mix(one + np.array([epoch], dtype=np.uint64) + GOLDEN)
    return mix(one + np.asarray(blocks, dtype=np.uint64) + GOLDEN)


def draw_masks(ids, seeds, probability, mask_id, special, vocab_size, starts=None):
    """Mask tokens for masked language modelling: 80 % by [MASK], 10 % by a random token, 10 % unchanged (BERT's rule).

    ids [B, T], NumPy. seeds [B]: from `row_seeds`; token t of a row draws output t of SplitMix64 with its seed, so a
    row's masks do not depend on its batch. special [V]: bool, True = never masked. starts [V]: bool from `word_starts`,
    for whole words. At least one token a row is masked, unless the probability is 0.
    Returns tensors (ids [B, T] with masks, positions [M] in the flattened batch, labels [M]).
    """
    able, counter = ~special[ids], np.arange(1, ids.shape[1] + 1, dtype=np.uint64) * GOLDEN
    bits = mix(np.asarray(seeds, dtype=np.uint64)[:, None] + counter)
    draw = bits >> np.uint64(32)
    if starts is not None:  # every piece takes the draw of its word's first piece
        first = np.where(starts[ids] | ~able, np.arange(ids.shape[1]), 0)
        draw = np.take_along_axis(draw, np.maximum.accumulate(first, axis=1), axis=1)
    picked = (draw < np.uint64(probability * 2**32)) & able
    for row in np.flatnonzero(~picked.any(1) & able.any(1)) if probability else ():
        picked[row] = able[row] & (draw[row] == draw[row][able[row]].min())
    masked, positions = ids.astype(np.int64).ravel(), np.flatnonzero(picked)
    labels, bits = masked[positions], bits.ravel()[positions]
    how = (bits & np.uint64(2**32 - 1)) / 2**32
    words = mix(bits) >> np.uint64(32)
    words = ((words * np.uint64(vocab_size)) >> np.uint64(32)).astype(np.int64)
    masked[positions] = np.where(how < 0.8, mask_id, np.where(how < 0.9, labels, words))
    return torch.from_numpy(masked).view(ids.shape), torch.from_numpy(positions), torch.from_numpy(labels)
