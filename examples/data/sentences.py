"""Makes sentences.tsv from the amazonReviewSnippets_GroundTruth.txt in the sdist of vaderSentiment 3.3.2.

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2    # then unpack it, and the archive inside it
    python3 sentences.py .../hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt > sentences.tsv
"""

import html
import sys

WANTED = 2400
kept = {}
with open(sys.argv[1], encoding="cp1252", newline="") as source:
    for line in source.read().split("\n"):
        if line.count("\t") != 2:
            continue
        _, score, text = line.split("\t")
        text = " ".join(html.unescape(text).split())
        if text.isascii() and text.isprintable() and len(text.split()) >= 3 and text not in kept and len(kept) < WANTED:
            kept[text] = score
for text, score in kept.items():
    sys.stdout.write(f"{score}\t{text}\n")
