"""The model card of a saved model: metadata for the Hugging Face hub, and a few lines of text."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from reporting.exports import without_folders
from reporting.records import recipe_text
from training import shown

# The hub's names: by the class that opens a model, and by our name of a metric.
PIPELINES = {
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModel": "sentence-similarity",
}
METRIC_TYPES = {"pearson": "pearsonr", "spearman": "spearmanr"}

# How a saved model is used: by its pipeline or, for classes of texts, by the problem.
USES = {
    "text-classification": """from transformers import pipeline

classify = pipeline("text-classification", model=folder)
print(classify({text}))""",
    "regression": """from transformers import pipeline

score = pipeline("text-classification", model=folder, function_to_apply="none")
print(score({text}))""",
    "multi_label_classification": """from transformers import pipeline

classify = pipeline("text-classification", model=folder)
chances = classify([{text}], top_k=None)[0]
print([row["label"] for row in chances if row["score"] >= classify.model.config.threshold])""",
    "token-classification": """from transformers import pipeline

tag = pipeline("token-classification", model=folder, aggregation_strategy="simple")
print(tag({text}))""",
    "fill-mask": """from transformers import pipeline

fill = pipeline("fill-mask", model=folder)
print(fill(f"The capital of France is {{fill.tokenizer.mask_token}}."))""",
    "question-answering": """from transformers import AutoModelForQuestionAnswering, AutoTokenizer

model, tokenizer = AutoModelForQuestionAnswering.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
words = tokenizer("Who lives in Paris?", "Ann lives in Paris.", return_tensors="pt")
out = model(**words)
print(tokenizer.decode(words["input_ids"][0, out.start_logits.argmax() : out.end_logits.argmax() + 1]))""",
    "sentence-similarity": """from sentence_transformers import SentenceTransformer

model = SentenceTransformer(folder)
print(model.similarity(*model.encode(["Ann lives in Paris.", "Paris is where Ann lives."])))""",
}


def usage(auto, problem=None, pair=False):
    """Return the card's lines on how to use a model of this class; problem: its configuration's problem_type."""
    text = '{"text": "Ann lives in Paris.", "text_pair": "Ann lives in France."}' if pair else '"Ann lives in Paris."'
    code = USES[problem if problem in USES else PIPELINES[auto.__name__]].format(text=text)
    return f"""
## Use

```python
folder = "."  # this one, or the model's name on the hub
{code}
```
"""


def base_metadata(source):
    """Return base_model, language and license of the model that a run begins with, as far as its card has them.

    source: a folder or a hub id. A folder is not named as the base model, but passes on what its own card says.
    """
    local = Path(source).exists()
    try:
        data = ModelCard.load(Path(source) / "README.md" if local else source, ignore_metadata_errors=True).data
        found = {name: data.get(name) for name in ("base_model", "language", "license")}
    except Exception:  # no card, a broken one, no network: a run must not end because metadata are missing
        found = {}
    if not local:
        found["base_model"] = source
    if "multilingual" in (found.get("language") or str(found.get("base_model"))):
        found["language"] = "multilingual"  # also if the card lists a hundred languages
    return {name: value for name, value in found.items() if value}


def model_card(args, entry, auto, about, dataset, base, suffixes=("",)):
    """Return the README.md of a saved model.

    entry: step and metrics of the evaluation in run.json. auto: the class that opens the model. about: a sentence on
    what the model is. dataset: what it was evaluated on, as EvalResult's dataset_type, dataset_name, ... base: from
    `base_metadata`. suffixes: of metrics that name one of several dev sets; the card moves them to the split's name.
    """
    task, results = PIPELINES[auto.__name__], []
    for name, value in entry["metrics"].items():
        if value is None:  # not defined
            continue
        suffix = next((suffix for suffix in suffixes if suffix and name.endswith(suffix)), "")
        kind, split = name.removesuffix(suffix), dataset["dataset_split"] + suffix
        metric = {"metric_type": METRIC_TYPES.get(kind, kind), "metric_name": name, "metric_value": value}
        results.append(EvalResult(task_type=task, **metric, **dataset | {"dataset_split": split}))
    distilled = ["knowledge-distillation"] if args.teacher else []
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=task,
        tags=[*distilled, getattr(args, "task", "mlm")],
        datasets=[dataset["dataset_type"]] if "/" in dataset["dataset_type"] else None,
        model_name=args.run_name,
        eval_results=results or None,
        **base,
    )
    scores = "\n".join(f"- {name}: {shown(value)}" for name, value in entry["metrics"].items())
    teachers = ", ".join(f"`{without_folders(name)}`" for name in (args.teacher, *getattr(args, "more_teachers", ())))
    how = f"distilled from {teachers} with `{recipe_text(vars(args))}`"
    how = how if args.teacher else "trained without a teacher"
    text = (
        f"# {args.run_name}, seed {args.seed}\n\n{about} It was {how}. On {dataset['dataset_name']}, step "
        f"{entry['step']}:\n\n{scores}\n\nMethod: contextual knowledge distillation (arXiv:2109.08359) or the "
        "baseline named above. `run.json` beside this file holds all options, hardware and time.\n"
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}"
