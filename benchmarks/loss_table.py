"""Per-language results of ``langsamp evaluate mlm`` as a Markdown table, several runs side by side.

python benchmarks/loss_table.py TITLE=mlm.json [TITLE=mlm.json ...]
"""

import json
import sys
from pathlib import Path

import tabulate


def main() -> None:
    titles, paths = zip(*(argument.split("=", 1) for argument in sys.argv[1:]), strict=True)
    results = [json.loads(Path(path).read_text("utf-8")) for path in paths]
    languages = [{record["language"]: record for record in r["languages"]} for r in results]
    headers, rows = ["language-script"], [["all"], *([name] for name in sorted(languages[0]))]
    for title, result, records in zip(titles, results, languages, strict=True):
        headers += [f"{title}: loss", "unigram loss", "below"]
        for row in rows:
            record = result if row[0] == "all" else records[row[0]]
            loss, unigram = record["loss"], record["unigram_loss"]
            row += [f"{loss:.3f}", f"{unigram:.3f}", f"{unigram - loss:+.3f}"]
    align = ["left", *["right"] * (len(headers) - 1)]
    print(tabulate.tabulate(rows, headers, "github", disable_numparse=True, colalign=align))


if __name__ == "__main__":
    main()
