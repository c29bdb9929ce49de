"""Made-up conversations whose answer lengths follow from the prompt, so that a model has something to learn."""

from __future__ import annotations

import random

from length_model.core.conversation import Turn
from length_model.core.query import LengthSample, make_query

ASKED = {"yes or no": 4, "one sentence": 25, "a paragraph": 110, "an essay": 600}
TOPICS = ["rivers", "bridges", "lighthouses", "bread", "clocks", "rain", "maps", "ladders", "harbours", "orchards"]


def made_samples(count: int, seed: int = 0, censored_share: float = 0.0) -> list[LengthSample]:
    """`count` samples in conversations of up to three questions. A cut answer shows a random part of its length."""
    rng = random.Random(seed)
    found: list[LengthSample] = []
    conversation = 0
    while len(found) < count:
        conversation += 1
        history: list[Turn] = []
        for turn in range(rng.randint(1, 3)):
            asked, typical = rng.choice(list(ASKED.items()))
            prompt = f"Tell me about {rng.choice(TOPICS)} {rng.randint(0, 10**6)} in {asked}"
            tokens = max(1, round(typical * rng.lognormvariate(0, 0.25)))
            cut = rng.random() < censored_share
            found.append(
                LengthSample(
                    sample_id=f"c{conversation}:{turn}",
                    group=f"c{conversation}",
                    query=make_query(prompt, history, model="m"),
                    prompt_tokens=len(prompt.split()),
                    output_tokens=rng.randint(1, tokens) if cut else tokens,
                    censored=cut,
                )
            )
            history += [Turn("user", prompt), Turn("assistant", "word " * tokens)]
    return found[:count]
