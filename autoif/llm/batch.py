"""A batch file in the place of a server: half the price at OpenAI, `vllm run-batch` elsewhere.

    python 02_verifiers.py --batch-out requests.jsonl ...    # writes what the store lacks, and ends
    python 02_verifiers.py --batch-in results.jsonl ...      # takes the answers, and goes on

04 and 03 ask twice, the second time about answers: with both flags the next requests are written.
OpenAI takes 50,000 requests and 200 MB a file (split -l 20000). A parameter that was refused
(`max_tokens`, by reasoning models) is left out of the next requests: with both flags, and all
results so far in one file.
"""

import base64
import sys

from openai.types.chat import ChatCompletion

from autoif import files
from autoif.files import UserError
from autoif.llm import reply as replies
from autoif.llm.endpoint import Failure, body_of, in_a_row, leave_out, refused_parameter
from autoif.llm.store import Store

# what a request may have that a server refuses
SENT = {"max_tokens": 1, "temperature": 0, "top_p": 1, "seed": 0, "messages": []}


class Batch:
    """As an Endpoint to the client; each request fails, and is written down."""

    def __init__(self, args, counts, refused: set[str]):
        files.refuse_unwritable(args.batch_out)
        self.model, self.counts, self.written = args.model, counts, set()
        self.refused = refused
        self.last_failure = Failure("written into --batch-out")
        self.file = open(args.batch_out, "w", encoding="utf-8")

    async def answer(self, request: dict, key: str, indices: list[int]) -> Failure:
        # a stage may try a prompt before it asks for all samples
        indices = [index for index in indices if (key, index) not in self.written]
        if not indices:
            return self.last_failure
        self.written |= {(key, index) for index in indices}
        # of its name OpenAI takes 64 characters
        short = base64.urlsafe_b64encode(bytes.fromhex(key)).decode()
        for part in in_a_row(indices):
            body = {"model": self.model, **body_of(request, part)}
            for name in self.refused:
                leave_out(name, body)
            line = {"custom_id": f"{short}.{part[0]}.{len(part)}", "method": "POST"}
            line |= {"url": "/v1/chat/completions", "body": body}
            self.file.write(files.dump(line) + "\n")
            self.counts["failed"] += 1
        return self.last_failure

    async def close(self) -> None:
        self.file.close()


def read(path: str, store: Store) -> set[str]:
    """Put the results of a batch into the store; the parameters that were refused in it.

    What failed is asked again.
    """
    failed, words, refused = 0, None, set()
    for number, row in files.numbered(path, {"custom_id": str}):
        try:
            short, first, count = row["custom_id"].split(".")
            key, first = base64.urlsafe_b64decode(short).hex(), int(first)
            indices = range(first, first + int(count))
        except ValueError:
            wrong = f"{path}:{number}: {row['custom_id']!r} is no request of --batch-out"
            raise UserError(f"{wrong}; give the results that were made of it") from None
        response = row.get("response") or {}
        body = response.get("body") or {}
        reply = ChatCompletion.construct(**body)
        if not replies.usable(reply):
            failed += 1
            error = str(body.get("error") or row.get("error") or "")
            words = words or error
            refused.add(refused_parameter(error, response.get("status_code"), SENT))
            continue
        records = replies.records(reply, key, indices)
        # what was read before stays
        store.put([each for each in records if store.missing(key, each["index"], 1)])
    if failed:
        said = f"; the first with: {words[:300]}" if words else ""
        print(f"{path}: {failed:,} requests failed in the batch{said}", file=sys.stderr)
    return refused - {None}
