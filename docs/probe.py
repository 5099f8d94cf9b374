"""What a linear classifier reads from models that were not trained on the task: accuracy on the dev set.

    python docs/probe.py --task sst2 --data_dir glue --max_train_samples 6000 my/MiniLM-L6 runs/general/3-192/ckd ...

One vector a sentence, of the last layer: that of the first token, [CLS], and the mean over the tokens. Logistic
regression, standardised, its strength chosen by five-fold cross-validation within the training examples.
"""
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import batching
import cli
import data
import options
import readers


@torch.no_grad()
def sentence_vectors(model, dataset, tokenizer):
    """(vectors of the first token [N, D], means over tokens [N, D]) of a tokenised Dataset, in its order."""
    rows, found = batching.Arrays(dataset, batching.INPUTS), [None] * len(dataset)
    for indices in np.array_split(np.argsort(rows.lengths(), kind="stable"), -(-len(dataset) // 64)):
        batch = rows.batch(indices.tolist(), tokenizer.pad_token_id)
        batch = {name: value for name, value in batch.items() if name in batching.INPUTS}
        hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
        for i, first, mean in zip(indices, hidden[:, 0], (hidden * mask).sum(1) / mask.sum(1), strict=True):
            found[i] = first.numpy(), mean.numpy()
    return tuple(map(np.array, zip(*found, strict=True)))


def accuracy(train, labels, dev, dev_labels):
    """Accuracy on dev [M, D] of a linear classifier of train [N, D]."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    strengths = {"logisticregression__C": (1e-4, 1e-3, 1e-2, 1e-1, 1)}
    return GridSearchCV(classifier, strengths, cv=5).fit(train, labels).score(dev, dev_labels)


def main():
    """Print a row a model."""
    parser = options.Parser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", help="folders or hub ids")
    options.add_data(parser)
    args = parser.parse_args()
    cli.quiet()
    data.check_args(args)
    _, splits = data.load_examples(args, readers.Skipped())
    for name in args.models:
        model, tokenizer = AutoModel.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
        sets = [data.tokenize(splits[split], tokenizer, args.max_seq_length) for split in ("train", "validation")]
        (first, mean), (dev_first, dev_mean) = (sentence_vectors(model, one, tokenizer) for one in sets)
        labels, dev_labels = (np.array(one["labels"]) for one in sets)
        scores = accuracy(first, labels, dev_first, dev_labels), accuracy(mean, labels, dev_mean, dev_labels)
        print(f"| {name} | {' | '.join(f'{100 * score:.1f}' for score in scores)} |", flush=True)


if __name__ == "__main__":
    cli.run_script(main)
