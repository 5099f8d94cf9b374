"""Plain text for masked language modelling: reading, packing into full blocks, drawing masks."""

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

from data import id_count
from engine import checkpoints, run_folder
from tasks.documents import FORMS, check_column, documents, find_files, form_of, no_column
from tasks.hub import load_hub, said
from tasks.readers import ending

DOCUMENTS = 1000  # that are tokenised and packed together
POOL = 10_000  # blocks among which a stream is shuffled
FEATURES = datasets.Features({"text": datasets.Value("string")})


def files_of(corpora):
    """Return all files of {language: corpora}; of data sets of the hub there are none."""
    return [file for own in corpora.values() for corpus in own for file in find_files(corpus) or ()]


def shared_text(corpora, others):
    """`shared_file` of any two corpora of {language: corpora}; None if there is none."""
    pairs = itertools.product(*(itertools.chain.from_iterable(of.values()) for of in (corpora, others)))
    return next(filter(None, itertools.starmap(shared_file, pairs)), None)


def shared_file(corpus, other):
    """Return a file of one corpus that is also in the other, by name or content, or their hub id; None if none is."""
    ours, theirs = find_files(corpus), find_files(other)
    if ours is None or theirs is None:
        return corpus if corpus == other else None
    sizes = {}
    for file in ours:
        sizes.setdefault(os.path.getsize(file), []).append(file)
    return next(
        (
            file
            for file in theirs
            for own in sizes.get(os.path.getsize(file), ())
            if os.path.samefile(own, file) or filecmp.cmp(own, file, shallow=False)
        ),
        None,
    )


def check_name(corpus):
    """Raise ValueError for what is neither file, folder nor glob and cannot be a hub id either."""
    named = corpus.startswith((".", "/", "~")) or corpus.count("/") != 1 or ending(corpus) in FORMS
    if find_files(corpus) is None and named:
        raise ValueError(f"corpus {corpus!r}: no such file, folder or glob (and not a hub id as owner/name:config)")


def load_texts(corpus, streaming=False, cache_dir=None, column="text"):
    """Dataset with a column text, a document a row: lines or rows of local files, or rows of a hub data set.

    corpus: what `documents.find_files` takes, or hub id with configuration as in wikimedia/wikipedia:20231101.en.
    cache_dir: a place of its own for the copy of local files. column: of tables, that with the text. Raises ValueError
    for files that cannot be read or hold no text, and for a column that is not there or holds something else.
    """
    if files := find_files(corpus):
        read = {"gen_kwargs": {"files": files, "column": column}, "features": FEATURES}
        if streaming:
            for _ in documents(files, column):  # what is wrong with them is said at once, not after hours
                pass
            return datasets.IterableDataset.from_generator(documents, **read)
        known = None if cache_dir else datasets.fingerprint.Hasher.hash(text_source(files, column))
        try:
            return datasets.Dataset.from_generator(documents, **read, cache_dir=cache_dir, fingerprint=known)
        except datasets.exceptions.DatasetGenerationError as error:
            if isinstance(error.__cause__, ValueError):  # of `documents`
                raise ValueError(str(error.__cause__)) from error
            raise
    check_name(corpus)
    name, _, config = corpus.partition(":")
    data = load_hub((name, config or None), "download its files and name them", split="train", streaming=streaming)
    if data.features:
        check_column(f"corpus {corpus!r}", column, data.features)
    elif column not in (there := next(iter(data))):  # a stream that says nothing of its columns
        raise no_column(f"corpus {corpus!r}", column, there)
    data = data.select_columns([column])
    return data if column == "text" else data.rename_column(column, "text")


def text_source(files, column):
    """Return what the documents of files depend on: a form, a digest of the content and, for tables, the column of
    each.
    """
    forms = map(form_of, files)
    return [[form, text_digest(file), *[column] * (form != "text")] for form, file in zip(forms, files, strict=True)]


def pack(documents, length, cls, sep):
    """Arrays of documents' token ids -> full blocks [N, length]: [CLS] text [SEP] text ... [SEP].

    [SEP] stands between documents and at the end, never twice in a row nor right after [CLS]. The tokens after the
    last full block are left out, and the last token of a document whose [SEP] would have to stand beside the closing
    one.
    """
    inner = length - 2  # what stands between the [CLS] and [SEP] of a block
    pieces, total, separator = [], 0, np.array([sep])
    for tokens in documents:
        if not len(tokens):
            continue
        if total % inner:
            if total % inner == inner - 1:  # room for a separator or a word, not for both
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
    """Return the name of the narrowest unsigned integer that holds every token id below count."""
    return np.min_scalar_type(max(count - 1, 1)).name


def whole_rows(documents, length, cls, sep, pad):
    """Arrays of documents' token ids -> [N, length], a row each: [CLS] its first tokens [SEP], then padding.

    A document without tokens has none.
    """
    documents = [tokens[: length - 2] for tokens in documents if len(tokens)]
    rows = np.full((len(documents), length), pad, dtype=np.int64)
    for row, tokens in zip(rows, documents, strict=True):
        row[0], row[1 : len(tokens) + 1], row[len(tokens) + 1] = cls, tokens, sep
    return rows


def cutter(tokenizer, length, whole=False):
    """Return the function from a list of texts to their blocks [N, length], a NumPy array: full ones, or one of each
    text.
    """
    backend, kind = tokenizer.backend_tokenizer, id_type(id_count(tokenizer))
    backend.no_truncation()  # left from an earlier call
    backend.no_padding()

    def cut(texts):
        """Return the full blocks of some texts; None is a text without words."""
        encodings = backend.encode_batch_fast([text or "" for text in texts], add_special_tokens=False)
        tokens = [np.array(encoding.ids, dtype=kind) for encoding in encodings]
        words = tokenizer.cls_token_id, tokenizer.sep_token_id
        made = whole_rows(tokens, length, *words, tokenizer.pad_token_id) if whole else pack(tokens, length, *words)
        return made.astype(kind)

    return cut


def load_blocks(corpus, tokenizer, length, num_proc=0, cache_dir="cache", column="text", whole=False):
    """Dataset with input_ids, a full block of `length` tokens a row, or if whole a text, padded; tokenised once, by
    num_proc processes (0: one for each core), and kept on disk. corpus, column: as in `load_texts`.

    What is on disk belongs to the text itself, not to the name or time of its files; its checksum is verified by one
    process of each machine, which costs one reading of it. Raises ValueError if the text does not fill one block, or if
    what is on disk is damaged; TrainingError if the disk is full.
    """
    cut = cutter(tokenizer, length, whole)
    files, texts = find_files(corpus), None
    if files is None:
        texts = load_texts(corpus, column=column)
    source = text_source(files, column) if files else texts._fingerprint
    known = [source, length, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.backend_tokenizer.to_str()]
    known = json.dumps([*known, datasets.__version__, 4, *["whole", tokenizer.pad_token_id] * whole])
    folder = Path(cache_dir) / f"text-{hashlib.sha256(known.encode()).hexdigest()[:16]}"
    first = os.environ.get("LOCAL_RANK", "0") == "0"  # of this machine's processes: it alone talks and verifies
    with checkpoints.building(folder, talk=first) as temporary:
        if temporary:
            kind, num_proc = id_type(id_count(tokenizer)), num_proc or cores()
            try:
                texts = texts or load_texts(corpus, cache_dir=str(temporary / "text"), column=column)
                build_blocks(corpus, texts, cut, kind, length, num_proc, temporary, folder)
            except Exception as error:  # datasets has its own for what the disk says
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
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def build_blocks(corpus, texts, cut, kind, length, num_proc, temporary, folder):
    """Tokenise and pack a corpus in the temporary folder, which gets the name `folder` once it is whole."""
    parts = datasets.Dataset.from_dict({"part": range(-(-len(texts) // DOCUMENTS))})
    parent = os.getpid()

    def cut_part(rows):
        """Return the blocks of one part of the corpus, for `map`, in a process of its own."""
        if parent not in (os.getpid(), os.getppid()):  # the run was killed: what it forked must not go on
            os._exit(1)
        (part,) = rows["part"]
        return {"input_ids": cut(texts[part * DOCUMENTS : (part + 1) * DOCUMENTS]["text"])}

    num_proc = min(num_proc, len(parts))
    if num_proc > 1:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the processes have the cores already
    if len(texts) > 100 * DOCUMENTS:
        print(f"{folder}: {len(texts)} documents, tokenised once, in {num_proc} processes", flush=True)
    features = datasets.Features({"input_ids": datasets.List(datasets.Value(kind), length=length)})
    # One part a call, so that the blocks are the same whatever the number of processes.
    blocks = parts.map(
        cut_part,
        batched=True,
        batch_size=1,
        remove_columns="part",
        features=features,
        new_fingerprint=folder.name,
        desc="tokenising",
        cache_file_name=str(temporary / "blocks.arrow"),
        num_proc=num_proc if num_proc > 1 else None,
    )
    if not len(blocks):
        raise too_short(corpus, length)
    run_folder.write_json(temporary / "blocks.json", {"blocks": len(blocks), "length": length, "ids": kind})
    shutil.rmtree(temporary / "text", ignore_errors=True)
    checkpoints.seal(temporary, folder)


class Rows:
    """The rows of a column of equally long lists, read from where the Dataset has them; drawn ones from a copy."""

    def __init__(self, dataset, column="input_ids"):
        found = dataset.with_format("arrow")[:][column]
        chunks = [found.combine_chunks()] if found.num_chunks == len(found) else found.chunks  # drawn rows lie apart
        self.parts = [chunk.flatten().to_numpy().reshape(len(chunk), -1) for chunk in chunks if len(chunk)]
        self.ends = np.cumsum([len(part) for part in self.parts])
        self.starts = [0, *self.ends.tolist()]

    def __getitem__(self, indices):
        """Return [B, T] NumPy array of the rows with these numbers."""
        which = np.searchsorted(self.ends, indices, side="right").tolist()
        return np.stack([self.parts[w][i - self.starts[w]] for w, i in zip(which, indices, strict=True)])

    def lengths(self, pad):
        """Tokens of each row up to its padding, an array."""
        return np.concatenate([lengths_of(part, pad) for part in self.parts])


def lengths_of(rows, pad):
    """Tokens of each row [N, T] up to its padding, an array [N]."""
    return rows.shape[1] - np.argmax(rows[:, ::-1] != pad, 1)


def shares(sizes, exponent):
    """{language: blocks in an epoch} of {language: blocks}: their shares to the power of the exponent, normalised.

    An epoch has as many blocks as there are. Source: the exponentially smoothed weighting of multilingual BERT.
    """
    total, powers = sum(sizes.values()), {language: size**exponent for language, size in sizes.items()}
    counts = {language: round(total * power / sum(powers.values())) for language, power in powers.items()}
    counts[max(counts, key=counts.get)] += total - sum(counts.values())
    return counts


def epoch_order(sizes, counts, seed, epoch):
    """Return the blocks of an epoch in random order, a tensor of their numbers; it depends on seed and epoch alone.

    sizes: {language: blocks}, which lie one language after the other. counts: from `shares`. A language that has fewer
    than that begins again; the number of a block is then higher by as many as there are in all, for other masks.
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
    """SHA-256 of a file's content. Raises ValueError if it cannot be read."""
    try:
        with open(path, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error


def too_short(corpus, length):
    """Return the error that a corpus does not fill one block."""
    return ValueError(f"corpus {corpus!r} is shorter than one block of {length} tokens: lower --seq_length")


class Stream:
    """One share of a streamed corpus: its blocks one after the other, again and again, shuffled within pools.

    texts: IterableDataset with a column text. cut: from `cutter`. share: (number, of how many); each reads files of its
    own where their number allows, else takes every so manyth batch of documents. position: a former `position`, to go
    on there: only the documents of its pool are read and tokenised again. name: of the corpus, in messages.
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
        """Begin to read where self.now says."""
        number, shares = self.share if self.own_files else (0, 1)
        self.part = split_dataset_by_node(self.texts, rank=number, world_size=shares)
        if self.now["source"]:
            self.part.load_state_dict(self.now["source"])
        self.batches = self.part.iter(batch_size=DOCUMENTS)

    def _fill(self):
        """Make the next pool: `size` blocks or a few more, fewer where the text ends."""
        self.start = {**self.now, "pool": self.now["pool"] + 1, "at": 0}
        found, count = [], 0
        while count < self.size:
            try:
                rows = next(self.batches, None)
            except Exception as error:  # the network and the parsers each raise their own
                raise run_folder.TrainingError(
                    f"{self.name} cannot be read on: {said(error)}; once it can, the same command "
                    "goes on from its last checkpoint"
                ) from error
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
    """Share of the unknown word in an array of ids, of it and all words with letters; 1 where all words are special."""
    words = tokenizer.convert_ids_to_tokens(range(id_count(tokenizer)))
    lettered = np.array([any(c.isalpha() for c in word or "") for word in words])
    lettered[tokenizer.all_special_ids] = False
    lost, known = (ids == tokenizer.unk_token_id).sum(), lettered[ids].sum()
    return 1.0 if np.isin(ids, tokenizer.all_special_ids).all() else lost / max(1, lost + known)


def word_starts(tokenizer):
    """Bool [V]: whether a token begins a word, for whole-word masking of a WordPiece vocabulary.

    An id without a word counts as one. Raises ValueError for other vocabularies, also if they hold ## as a word.
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
    """SplitMix64's output function (Steele, Lea, Flood, OOPSLA 2014): uint64 array -> well mixed uint64 array."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def row_seeds(seed, epoch, blocks):
    """Seeds [B] (uint64) of the masks of some blocks, from the run's seed, the epoch and the blocks' numbers alone."""
    one = mix(np.array([seed], dtype=np.uint64) + GOLDEN)
    one = mix(one + np.array([epoch], dtype=np.uint64) + GOLDEN)
    return mix(one + np.asarray(blocks, dtype=np.uint64) + GOLDEN)


def draw_masks(ids, seeds, probability, mask_id, special, vocab_size, starts=None):
    """Mask tokens for masked language modelling, 80 % by [MASK], 10 % by a random word, 10 % left (BERT's rule).

    ids [B, T], NumPy. seeds [B]: a number for each row (`row_seeds`), so that a row's masks do not depend on the batch
    it is in: token t of a row draws output t of SplitMix64 with that seed. special [V]: bool, True = never masked.
    starts [V]: bool from `word_starts`, for whole words. At least one token of a row is masked, but with probability 0.
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
