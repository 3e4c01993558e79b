"""An order book as a feed's messages leave it."""

from onetape.sources.book import Book, BookSnapshot, Level


def test_levels_come_best_first_on_both_sides():
    book = Book()
    for price in (100.0, 99.5, 100.25):
        book.set_level("bid", price, 3, 1, at_ns=7)
    for price in (101.0, 100.5, 102.0):
        book.set_level("ask", price, 2, 4)
    assert [level.price for level in book.bids()] == [100.25, 100.0, 99.5]
    assert [level.price for level in book.asks()] == [100.5, 101.0, 102.0]
    assert book.best() == (Level(100.25, 3, 1), Level(100.5, 2, 4))
    assert book.at_ns == 7


def test_a_size_of_zero_takes_a_level_away_even_one_that_is_not_there():
    book = Book()
    book.set_level("bid", 100.0, 3)
    book.set_level("bid", 100.0, 0)
    book.set_level("ask", 55.0, 0)
    assert book.bids() == [] == book.asks()
    assert book.best() == (None, None)


def test_a_book_is_cleared_and_given_back_from_a_snapshot():
    book = Book()
    book.set_level("bid", 100.0, 3, 2, at_ns=1)
    book.set_level("ask", 101.0, 4, 2, at_ns=2)
    taken = book.snapshot()
    book.clear(at_ns=3)
    assert book.snapshot() == BookSnapshot(3, (), ())
    book.replace(taken)
    assert book.snapshot() == taken


def test_a_list_that_was_handed_out_is_the_readers_own():
    book = Book()
    book.set_level("bid", 100.0, 3)
    book.bids().clear()
    assert book.bids() == [Level(100.0, 3)]
