"""One queue, several routes: who is computed where."""

import attrs

from hydra.actors.core.facts import ModelKnown, RouteDown
from hydra.protocol.batch import int32
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.messages.generations import Close, OpenRefused, Reopen
from tests.unit.actors.test_broker import UP, Table, mail, opening


def two_routes(**second):
    table = Table(max_running=8)
    table.rise(route=2, nodes=("c",), first_addr=Endpoint("tcp://c"), **second)
    return table


def rows(table):
    return [len(route.scheduler.rows) for route in table.broker._models["m"].routes.values()]


def test_work_is_spread_evenly_over_equal_routes():
    table = two_routes()
    for session in range(1, 7):
        table.says(opening(session))
    assert rows(table) == [3, 3] and {step.route for step in table.steps} == {1, 2}
    assert table.broker.statistics("m") == (200, table.broker.statistics("m")[1], 6, 0)


def test_a_larger_route_is_given_more():
    table = two_routes(kv_blocks=300)
    for session in range(1, 9):
        table.says(opening(session))
    assert rows(table) == [2, 6]


def test_each_route_has_as_many_rows_as_are_set():
    table = Table(max_running=2)
    table.rise(route=2)
    for session in range(1, 7):
        table.says(opening(session))
    assert rows(table) == [2, 2] and table.broker.statistics("m")[3] == 2
    table.says(Close(session=1, attempt=0))
    assert rows(table) == [2, 2] and table.broker.statistics("m")[3] == 1


def test_what_a_lost_route_computed_goes_on_on_the_other_in_front_of_new_work():
    table = two_routes()
    for session in range(1, 5):
        table.says(opening(session))
    reopens = mail(table.fall(death=True), Reopen)
    assert {reopen.session for reopen in reopens} == {1, 3} and rows(table) == [2]
    for reopen in reopens:
        table.says(opening(reopen.session, attempt=1, deaths=1))
    assert rows(table) == [4], "at once: nothing waits for the lost route"


def test_a_long_one_goes_where_it_fits_and_waits_for_that_route():
    table = two_routes(max_model_len=256)
    long = opening(1, history=int32(range(3, 90)), prompt_tokens=87, max_tokens=100)
    for session in (2, 3, 4):
        table.says(opening(session))
    table.says(long)
    assert 1 in {row.key.session for row in table.broker._models["m"].routes[2].scheduler.rows.values()}
    table.tell(RouteDown(model_id="m", route=2, death=True))
    table.says(attrs.evolve(long, attempt=1))
    assert table.broker.statistics("m")[3] == 1, "it waits: the route that has room for it may come back"
    (refused,) = mail(table.tell(ModelKnown(model_id="m", max_model_len=UP.max_model_len)), OpenRefused)
    assert refused.session == 1 and refused.refusal.code == "context_length_exceeded"
