from server_toolkit.rounds.schedule import Schedule


def due(schedule, rounds):
    return [closed for closed in range(rounds + 2) if schedule.is_due(closed, rounds=rounds)]


def test_by_default_nothing_is_hardened_between_rounds():
    assert due(Schedule(), 10) == []


def test_it_begins_after_the_first_and_repeats():
    assert due(Schedule(every=3, first=2), 10) == [2, 5, 8]


def test_it_is_never_due_before_the_first_round_or_after_the_last():
    assert due(Schedule(every=1), 3) == [1, 2]
