"""A batch file in the place of a server: half the price at OpenAI, `vllm run-batch` elsewhere.

    python 02_verifiers.py --batch-out requests.jsonl ...    # writes what the store lacks, and ends
    python 02_verifiers.py --batch-in results.jsonl ...      # takes the answers, and goes on

04 and 03 ask twice, the second time about answers: with both flags the next requests are written.
OpenAI takes 50,000 requests a file (split -l 50000).
"""

import base64
import sys

from openai.types.chat import ChatCompletion

from autoif import files
from autoif.files import UserError
from autoif.llm import reply as replies
from autoif.llm.endpoint import Failure, body_of
from autoif.llm.store import Store


class Batch:
    """As an Endpoint to the client; each request fails, and is written down."""

    def __init__(self, args, counts):
        files.refuse_unwritable(args.batch_out)
        self.model, self.counts, self.written = args.model, counts, set()
        self.last_failure = Failure("written into --batch-out")
        self.file = open(args.batch_out, "w", encoding="utf-8")

    async def answer(self, request: dict, key: str, indices: list[int]) -> Failure:
        # a stage may try a prompt before it asks for all samples
        indices = [index for index in indices if (key, index) not in self.written]
        if not indices:
            return self.last_failure
        self.written |= {(key, index) for index in indices}
        # a stored sample between two that are not comes again, and is left out by `read`
        asked = range(indices[0], indices[-1] + 1)
        body = {"model": self.model, **body_of(request, asked)}
        # of its name OpenAI takes 64 characters
        short = base64.urlsafe_b64encode(bytes.fromhex(key)).decode()
        line = {"custom_id": f"{short}.{asked[0]}.{len(asked)}", "method": "POST"}
        line |= {"url": "/v1/chat/completions", "body": body}
        self.file.write(files.dump(line) + "\n")
        self.counts["failed"] += 1
        return self.last_failure

    async def close(self) -> None:
        self.file.close()


def read(path: str, store: Store) -> None:
    """Put the results of a batch into the store; what failed in it is asked again."""
    failed, words = 0, None
    for number, row in files.numbered(path, {"custom_id": str}):
        try:
            short, first, count = row["custom_id"].split(".")
            key, first = base64.urlsafe_b64decode(short).hex(), int(first)
            indices = range(first, first + int(count))
        except ValueError:
            wrong = f"{path}:{number}: {row['custom_id']!r} is no request of --batch-out"
            raise UserError(f"{wrong}; give the results that were made of it") from None
        body = (row.get("response") or {}).get("body") or {}
        if not body.get("choices"):
            failed += 1
            words = words or body.get("error") or row.get("error")
            continue
        records = replies.records(ChatCompletion.construct(**body), key, indices)
        # what was read before stays
        store.put([each for each in records if store.missing(key, each["index"], 1)])
    if failed:
        said = f"; the first with: {str(words)[:300]}" if words else ""
        print(f"{path}: {failed:,} requests failed in the batch{said}", file=sys.stderr)
