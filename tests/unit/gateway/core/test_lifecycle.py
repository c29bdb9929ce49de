"""Every pair of state and trigger is either in the table or refused."""

from __future__ import annotations

import itertools

import pytest

from gateway.core.request.lifecycle import HOLDS_ACCOUNT, TRANSITIONS, IllegalTransition, State, Trigger, follow


@pytest.mark.parametrize(("state", "trigger"), list(itertools.product(State, Trigger)))
def test_a_pair_is_legal_exactly_if_the_table_has_it(state: State, trigger: Trigger) -> None:
    if (state, trigger) in TRANSITIONS:
        assert follow(state, trigger) is TRANSITIONS[state, trigger]
    else:
        with pytest.raises(IllegalTransition, match=state.value):
            follow(state, trigger)


def test_nothing_happens_after_the_end() -> None:
    assert not [pair for pair in TRANSITIONS if pair[0] is State.ENDED]


def test_every_state_is_reached_and_every_state_but_the_end_can_end() -> None:
    assert {State.PLACING, *TRANSITIONS.values()} == set(State)
    for state in set(State) - {State.ENDED}:
        assert State.ENDED in {after for (before, _), after in TRANSITIONS.items() if before is state}


def test_whoever_waits_can_be_left_by_the_client_and_overtaken_by_the_deadline() -> None:
    for state in set(State) - {State.ENDED}:
        assert follow(state, Trigger.CLIENT_ENDED) is State.ENDED
        assert follow(state, Trigger.DEADLINE) is State.ENDED


def test_a_request_is_tried_again_only_while_its_client_has_seen_nothing() -> None:
    assert [state for state, trigger in TRANSITIONS if trigger is Trigger.RETRIED] == [State.SENT]


def test_an_account_is_held_exactly_where_a_node_has_the_request() -> None:
    assert {State.SENT, State.STREAMING} == HOLDS_ACCOUNT
    entered = {after for (before, _), after in TRANSITIONS.items() if before not in HOLDS_ACCOUNT}
    assert entered & HOLDS_ACCOUNT == {State.SENT}, "an account is taken at dispatch and nowhere else"
