"""What gateways tell each other of their requests: all of it, in order, as far apart as it was, each thing once."""

from __future__ import annotations

import itertools
import random

import pytest

from gateway.core.scale.events import FleetSeen, RequestCame, RequestDone, RequestPlaced
from gateway.core.scale.lease import LeaseSeeker
from gateway.core.scale.news import MOST_EVENTS, NEWS_S, HeldRequests, NewsListener, NewsTeller, ScalingNews
from gateway.core.scale.watch import RequestEvent
from gateway.nodes.news_wire import news_from_wire, news_to_wire
from protos.v1 import astrolabe_predict_pb2 as pb

TTL_S = 10.0
NOBODY = HeldRequests()


def came(prompt_tokens: int) -> RequestCame:
    return RequestCame(prompt_tokens=prompt_tokens, expected_tokens=100.0, model="m")


def test_what_one_tells_happens_to_the_others_in_its_own_time() -> None:
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    clock_s = 1000.0
    times_s = sorted(rng.uniform(0.0, 10.0) for _ in range(200))
    teller, listener = NewsTeller("a/1"), NewsListener(TTL_S)
    heard: list[tuple[RequestEvent, float]] = []
    for second in range(1, 13):
        for i, then_s in enumerate(times_s):
            if second - 1 <= then_s < second:
                teller.add(came(i), then_s)
        listener.heard(teller.news(NOBODY, float(second)), clock_s + second)
        heard += listener.due(clock_s + second)
    assert [event.prompt_tokens for event, _ in heard if isinstance(event, RequestCame)] == list(range(200)), seed
    assert [at_s - clock_s - NEWS_S for _, at_s in heard] == pytest.approx(times_s), seed


def test_what_is_due_later_is_given_later_and_several_gateways_in_order() -> None:
    listener = NewsListener(TTL_S)
    for gateway, agos_s in (("a", (0.9, 0.1)), ("b", (0.5,))):
        requests = tuple((ago_s, came(round(ago_s * 10))) for ago_s in agos_s)
        listener.heard(ScalingNews(gateway=gateway, number=1, held=NOBODY, requests=requests), 50.0)
    assert [event.prompt_tokens for event, _ in listener.due(50.6) if isinstance(event, RequestCame)] == [9, 5]
    assert [event.prompt_tokens for event, _ in listener.due(60.0) if isinstance(event, RequestCame)] == [1]
    assert list(listener.due(70.0)) == []


def test_a_message_counts_once_and_none_that_was_overtaken() -> None:
    listener = NewsListener(TTL_S)
    for number in (2, 2, 1, 3):
        news = ScalingNews(gateway="a", number=number, held=NOBODY, requests=((0.0, came(number)),))
        listener.heard(news, 5.0)
    assert [event.prompt_tokens for event, _ in listener.due(9.0) if isinstance(event, RequestCame)] == [2, 3]


def test_what_waits_at_others_is_seen_until_they_are_silent() -> None:
    listener = NewsListener(TTL_S)
    held = HeldRequests(
        held=2, held_prompt_tokens=10, held_expected_tokens=20.0, oldest_held_s=3.0, waiting_models=("b",)
    )
    listener.heard(ScalingNews(gateway="a", number=1, held=held), 100.0)
    listener.heard(ScalingNews(gateway="c", number=1, held=NOBODY), 100.0)
    own = FleetSeen(nodes=(), held=1, held_prompt_tokens=5, oldest_held_s=1.0, waiting_models=("a", "b"))
    seen = listener.with_held(own, 104.0)
    assert (seen.held, seen.held_prompt_tokens, seen.held_expected_tokens) == (3, 15, 20.0)
    assert (seen.oldest_held_s, seen.waiting_models) == (7.0, ("a", "b"))
    listener.heard(ScalingNews(gateway="a", number=2, held=NOBODY), 105.0)
    assert listener.with_held(own, 105.0) == own, "they have been placed since"
    listener.heard(ScalingNews(gateway="a", number=3, held=held), 106.0)
    assert listener.with_held(own, 106.1 + TTL_S) == own, "it tells nothing any more"


def test_what_nobody_hears_is_not_kept_and_one_message_has_its_limit() -> None:
    teller = NewsTeller("a")
    for i in range(MOST_EVENTS + 10):
        teller.add(came(i), 1.0)
    assert len(teller.news(NOBODY, 2.0).requests) == MOST_EVENTS
    teller.add(came(1), 2.5)
    teller.forget()
    news = teller.news(NOBODY, 3.0)
    assert (news.number, news.requests) == (2, ())


def test_what_is_told_crosses_the_wire_whole() -> None:
    events: list[RequestEvent] = [came(7)]
    for ttft_s in (None, 0.0, 1.5):
        events.append(RequestPlaced(node_id="n", waited_s=0.5, ttft_s=ttft_s, e2e_s=ttft_s, tpot_s=ttft_s, model="m"))
        events.append(
            RequestDone(
                node_id="n",
                prompt_tokens=9,
                cached_tokens=4,
                output_tokens=3,
                waited_s=0.25,
                ttft_s=ttft_s,
                e2e_s=2.5,
                model="",
            )
        )
    held = HeldRequests(
        held=2, held_prompt_tokens=10, held_expected_tokens=20.0, oldest_held_s=3.0, waiting_models=("b",)
    )
    news = ScalingNews(gateway="a/1", number=4, held=held, requests=tuple(zip(itertools.count(), events)))
    sent = pb.ScalingNews.FromString(news_to_wire(news).SerializeToString())
    assert news_from_wire(sent) == news
    sent.requests.add(ago_s=0.0, model="of a later release")
    assert news_from_wire(sent) == news


def test_a_gateway_tells_a_node_of_the_leader_that_others_ask_too() -> None:
    seeker = LeaseSeeker("b", TTL_S, 0.0)
    assert seeker.messenger(0.0) == ""
    answers = {"n0": ("", 1), "n1": ("a", 1), "n2": ("a", 0), "n3": ("a", 2)}
    for node_id in answers:
        seeker.node_up(node_id)
    for question in seeker.questions(0.0):
        holder, others = answers[question.node_id]
        seeker.heard(
            question.node_id,
            question.number,
            granted=False,
            holder=holder,
            waits_s=0.0,
            elsewhere=(),
            others=others,
            now_s=0.1,
        )
    assert seeker.messenger(0.2) == "n1"
    seeker.node_down("n1", 0.3)
    assert seeker.messenger(0.4) == "n3"
    seeker.node_down("n3", 0.5)
    assert seeker.messenger(0.6) == "n0", "nobody leads as far as is known: whoever hears it"
    seeker.node_down("n0", 0.7)
    assert seeker.messenger(0.8) == "", "the last one has no other gateway"
