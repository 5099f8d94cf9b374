"""What a linear classifier reads from models that were not trained on a task: accuracy on the dev set.

    python docs/experiments/probe.py --task sst2 --data_dir glue --max_train_samples 6000 my/MiniLM-L6 ...

One vector a text (or pair), of the last layer: that of the first token, [CLS], and the mean over the tokens. Logistic
regression, standardised; its strength by five-fold cross-validation within the training examples, in their order, of
which SST-2's are phrases of the same sentences, so that it is chosen as weaker than it should be for all models alike.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import data
import models
import options
from encoders import model_outputs
from engine import command_line
from tasks import batching, readers

TASKS = [name for name, task in data.TASKS.items() if task.kind == "classification" and task.columns and task.dev]


@torch.no_grad()
def text_vectors(model, dataset, tokenizer):
    """(vectors of the first token [N, D], means over tokens [N, D]) of a tokenised Dataset, in its order."""
    rows, found = batching.Arrays(dataset, batching.INPUTS), [None] * len(dataset)
    for indices in np.array_split(np.argsort(rows.lengths(), kind="stable"), -(-len(dataset) // 64)):
        batch = rows.batch(indices.tolist(), tokenizer.pad_token_id)
        mask = batch["attention_mask"][..., None]
        hidden = model(**model_outputs.model_inputs(model, batch)).last_hidden_state
        for i, first, mean in zip(indices, hidden[:, 0], (hidden * mask).sum(1) / mask.sum(1), strict=True):
            found[i] = first.numpy(), mean.numpy()
    return tuple(map(np.array, zip(*found, strict=True)))


def accuracy(train, labels, dev, dev_labels):
    """Accuracy on dev [M, D] of a linear classifier of train [N, D]."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    strengths = {"logisticregression__C": (1e-4, 1e-3, 1e-2, 1e-1, 1)}
    return GridSearchCV(classifier, strengths, cv=5).fit(train, labels).score(dev, dev_labels)


def main():
    """Print a row a model: accuracy x 100 by the first token and by the mean."""
    parser = options.Parser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", help="folders or hub ids")
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument("--data_dir", help="folder with GLUE's files instead of the hub")
    for name in ("--max_train_samples", "--max_eval_samples"):
        parser.add_argument(name, type=options.number(int, 0), default=0, help="0 = all")
    args = parser.parse_args()
    command_line.quiet()
    _, splits = data.load_examples(args, readers.Skipped())
    dev = next(split for split in splits if split.startswith("validation"))
    for name in args.models:
        model, tokenizer = models.load_model(name, AutoModel)[0], models.load_tokenizer(name)
        length = min(128, model_outputs.max_tokens(model.config))
        sets = [data.tokenize(splits[split], tokenizer, length) for split in ("train", dev)]
        train_vectors, dev_vectors = (text_vectors(model, one, tokenizer) for one in sets)
        labels, dev_labels = (np.array(one["labels"]) for one in sets)
        scores = [
            accuracy(train, labels, held, dev_labels) for train, held in zip(train_vectors, dev_vectors, strict=True)
        ]
        print(f"| {name} | {' | '.join(f'{100 * score:.1f}' for score in scores)} |", flush=True)


if __name__ == "__main__":
    command_line.run_script(main)
