"""Natural language inference by a classifier: what a premise says of a hypothesis."""

from collections.abc import Callable

from autoif.files import UserError

LABELS = ("entailment", "neutral", "contradiction")


def load(name: str, batch_size: int) -> Callable[[list[tuple[str, str]]], list[str]]:
    """Load a classifier, once; the function gives the labels of (premise, hypothesis) pairs."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForSequenceClassification.from_pretrained(name)
    except OSError as error:
        raise UserError(
            f"--nli {name} cannot be loaded ({str(error).splitlines()[0]}); "
            f"give a local path, or --nli llm to ask the supervisor"
        ) from None
    # the order of the labels is the model's own: the released code assumes it
    labels = sorted(map(str.lower, model.config.id2label.values()))
    if labels != sorted(LABELS):
        raise UserError(
            f"--nli {name} has the labels {labels}; a model with {', '.join(LABELS)} is needed"
        )
    # in batches: the released code loads the model again for each pair
    classify = pipeline(
        "text-classification", model, tokenizer=tokenizer, batch_size=batch_size, truncation=True
    )

    def judge(pairs: list[tuple[str, str]]) -> list[str]:
        if not pairs:  # the pipeline looks at its first text
            return []
        texts = []
        for both in pairs:
            # half a surrogate pair, which models write, is no text to a tokenizer
            premise, hypothesis = (text.encode("utf-8", "replace").decode() for text in both)
            texts.append({"text": premise, "text_pair": hypothesis})
        return [best["label"].lower() for best in classify(texts)]

    return judge
