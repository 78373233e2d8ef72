"""Collections stay out of layers: none while one runs, one when it is over; start-up is never collected again."""

from __future__ import annotations

import gc
import weakref

import pytest

from controller.heap import Heap


class Loop:
    """Something that only a collection can take away."""

    def __init__(self) -> None:
        self.itself = self


def lost_loop() -> weakref.ref[Loop]:
    return weakref.ref(Loop())


def churn() -> None:
    """More than any threshold of the collector."""
    for _ in range(20 * gc.get_threshold()[0]):
        lost_loop()


def test_no_collection_falls_into_a_layer_and_one_follows_it() -> None:
    with Heap() as heap:
        heap.layer(True)
        left = lost_loop()
        churn()
        assert left() is not None
        assert heap.figures()["collections"] == 0
        heap.layer(False)
        assert left() is None
        figures = heap.figures()
        assert (figures["collections"], figures["in_layers"]) == (1, 0)
        assert figures["longest_ms"] > 0
        churn()
        assert heap.figures()["collections"] > 1


def test_what_falls_into_a_layer_all_the_same_is_counted() -> None:
    with Heap() as heap:
        heap.layer(True)
        gc.collect()
        assert heap.figures()["in_layers"] == 1


def test_a_layer_ends_once_and_an_end_without_one_collects_nothing() -> None:
    with Heap() as heap:
        heap.layer(False)
        heap.layer(True)
        heap.layer(False)
        heap.layer(False)
        assert heap.figures()["collections"] == 1


def test_collections_are_as_before_after_the_block_whatever_ended_it() -> None:
    callbacks = list(gc.callbacks)

    def fails() -> None:
        with Heap() as heap:
            assert gc.get_freeze_count() > 1000
            heap.layer(True)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    assert gc.callbacks == callbacks
