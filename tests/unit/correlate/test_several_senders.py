# SPDX-License-Identifier: Apache-2.0
"""A storm of several senders: each IPI's events are those of its own sender and target."""

from dataclasses import replace

import numpy as np
from made_up import same, tell

from ipitrace.correlate.exits import exit_tables
from ipitrace.correlate.spans import correlate, joined
from ipitrace.words.events import Kind
from ipitrace.words.scenarios import Pattern, Route, routes_of


def test_the_parts_of_a_ring_do_not_mix() -> None:
    """Two storms of one sender, at the same time on other vCPUs, are found as if alone."""
    first = tell("vmx", 9, 1).trace
    shift = np.uint32(len(first.receipts))
    events = first.events.copy()
    events["vcpu"] += shift
    accepts = np.isin(events["kind"], [Kind.KVM_APIC_ACCEPT_IRQ, Kind.KVM_APICV_ACCEPT_IRQ])
    events["word"][accepts] += shift
    sends = first.sends.copy()
    sends["sender"] += np.uint16(shift)
    targets = tuple(int(t + shift) for t in first.targets)
    second = replace(
        first,
        sends=sends,
        sender=int(first.sender + shift),
        targets=targets,
        receipts=[*(np.empty(0, r.dtype) for r in first.receipts), *first.receipts],
        events=events,
        cpus=None,
    )
    both = replace(
        second,
        sends=np.concatenate([first.sends, sends]),
        receipts=[*first.receipts, *first.receipts],
        events=np.concatenate([first.events, events]),
        event_tsc=np.concatenate([first.event_tsc, first.event_tsc]),
        targets=(*first.targets, *targets),
    )
    routes = [Route(first.sender, tuple(first.targets)), Route(second.sender, targets)]
    found = joined([correlate(both.of_route(route)) for route in routes])
    alone = [correlate(replace(first, cpus=None)), correlate(second)]
    assert same(found, joined(alone))
    assert found.unmatched_events == joined(alone).unmatched_events
    assert found.sender.tolist() == [first.sender] * len(alone[0].seq) + [second.sender] * len(
        alone[1].seq
    )
    tables = {table.vcpu: table for table in exit_tables(both, found)}
    for trace, spans in zip((first, second), alone, strict=True):
        for table in exit_tables(trace, spans):
            own = tables[table.vcpu]
            assert own.in_deliver_cycles.tolist() == table.in_deliver_cycles.tolist()


def test_a_vcpu_of_a_ring_sends_and_handles() -> None:
    routes = routes_of(Pattern.RING, (0, 1, 2))
    assert {route.sender for route in routes} == {t for route in routes for t in route.targets}
