"""Which labels are taken for one another: bounded, whatever the photos."""

from fruits.analysis.quality import MOST_TABLE_LABELS, ConfusedPair, confusion_of


def confusion(*photos):
    """The confusion of photos `label > likeliest`, whose keys are their label and number."""
    pairs = [photo.split(" > ") for photo in photos]
    keys = [f"{label}/{number}" for number, (label, _) in enumerate(pairs)]
    return confusion_of(keys, [label for label, _ in pairs], [likeliest for _, likeliest in pairs])


def test_the_most_confused_pairs_come_first_with_the_first_keys():
    found = confusion("Fig > Fig", *["Kiwi > Lime"] * 5, "Fig > Lime", *["Lime > Kiwi"] * 2, "Fig > Kiwi")
    assert found.pairs == (
        ConfusedPair("Kiwi", "Lime", 5, ("Kiwi/1", "Kiwi/2", "Kiwi/3")),
        ConfusedPair("Lime", "Kiwi", 2, ("Lime/7", "Lime/8")),
        ConfusedPair("Fig", "Kiwi", 1, ("Fig/9",)),
        ConfusedPair("Fig", "Lime", 1, ("Fig/6",)),
    )


def test_the_table_counts_each_photo_once():
    found = confusion("Fig > Fig", "Fig > Fig", "Fig > Lime", "Kiwi > Kiwi")
    assert found.table == {"Fig": {"Fig": 2, "Lime": 1}, "Kiwi": {"Kiwi": 1}}
    assert found.labels == ("Fig", "Kiwi", "Lime")


def test_without_a_mistake_there_is_no_pair():
    assert confusion("Fig > Fig").pairs == ()


def test_many_labels_have_ten_pairs_and_no_table():
    numbers = range(MOST_TABLE_LABELS)
    found = confusion(*(f"{number} > {number + 1}" for number in numbers))
    assert (len(found.pairs), found.table, found.labels) == (10, {}, ())
    assert confusion(*(f"{number} > {number}" for number in numbers)).table
