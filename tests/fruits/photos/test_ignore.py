import pytest
from hypothesis import given
from hypothesis import strategies as st

from fruits.photos.ignore import DEFAULT_RULES, MEANINGS, IgnoreRules, Names, meaning_of
from fruits.settings import Settings


def rules(*ignore: str, **values: object) -> IgnoreRules:
    chosen = {"ignore": ignore} if ignore else {}
    return IgnoreRules.of(
        Settings.load(lake="file:///lake", catalog_uri="sqlite:////lake/catalog.db", **chosen, **values)
    )


RULES = rules()
LITTER = {
    "Training/Kiwi/": "folder_marker",
    "Training/Kiwi/.1.jpg.icloud": "cloud_placeholder",
    "Training/Kiwi/1.jpg.cloud": "cloud_placeholder",
    ".DS_Store": "hidden",
    "Training/Kiwi/._1.jpg": "hidden",
    "Training/.keep": "hidden",
    "Training/Kiwi/.gitkeep": "hidden",
    "Training/Kiwi/.ipynb_checkpoints/1-checkpoint.jpg": "hidden",
    ".Trash-1000/files/Kiwi/1.jpg": "hidden",
    ".git/lfs/objects/ab/1.jpg": "hidden",
    "__MACOSX/Training/Kiwi/1.jpg": "system",
    "photos/__macosx/Kiwi/1.jpg": "system",
    "Training/Icon\r": "system",
    "Training/Kiwi/Thumbs.db": "system",
    "Training/Kiwi/desktop.ini": "system",
    "Training/Kiwi/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg": "system",
    "$RECYCLE.BIN/S-1-5-21/$R1.jpg": "system",
    "System Volume Information/x/1.jpg": "system",
    "lost+found/a/#1.jpg": "system",
    "#recycle/Kiwi/1.jpg": "system",
    "FOUND.000/Kiwi/1.jpg": "system",
    "Training/_SUCCESS": "job_marker",
    "Training/Kiwi_$folder$": "job_marker",
    "_$folder$": "job_marker",
    "Training/Kiwi/.1.jpg.crc": "hidden",
    "AWSLogs/123456789012/elasticloadbalancing/eu-west-1/2026/11/20/a.log.gz": "other_program",
    "AWSLogs/123456789012/CloudTrail/1.json.gz": "other_program",
    "warehouse/features/data/00000.parquet": "other_program",
    "warehouse/features/metadata/00001-ab.metadata.json": "other_program",
    "warehouse/features/metadata/snap-1.avro": "other_program",
    "sales/part-00000.snappy.orc": "other_program",
    "sales/_delta_log/00000000000000000000.json": "other_program",
    "server.log": "other_program",
    "Training/Kiwi/1.xml": "sidecar",
    "annotations.JSON": "sidecar",
    "Training/labels.csv": "sidecar",
    "README.md": "sidecar",
    "Training/Kiwi/1.jpg.txt": "sidecar",
    "picasa.ini": "sidecar",
}


@pytest.mark.parametrize(("key", "rule"), LITTER.items())
def test_what_others_keep_beside_photos_is_ignored_by_a_rule_with_a_name(key, rule):
    assert RULES.rule_of(key) == rule
    assert meaning_of(rule) == MEANINGS[rule]


@pytest.mark.parametrize(
    "key",
    [
        "Training/Kiwi/1.jpg",
        "Training/Kiwi/photo",
        "Training/Thumbs/1.jpg",
        "Training/metadata/1.jpg",
        "Training/MACOSX/1.jpg",
        "Training/Kiwi/_1.jpg",
        "Training/Kiwi/a.json.jpg",
        "Training/lost+found.jpg",
        "Training/Kiwi/@1.jpg",
        "Training/Kiwi/#12.jpg",
        "Training/Kiwi/1.zip",
        "Training/Kiwi/1.heic",
        "Training/Kiwi\n/1.jpg",
        "./Kiwi/1.jpg",
        "Kiwi/../1.jpg",
        "Kiwi/..",
        "Kiwi//1.jpg",
        "/Kiwi/1.jpg",
    ],
)
def test_a_key_that_may_be_a_photo_s_is_judged_by_the_key_pattern(key):
    assert RULES.rule_of(key) is None


@given(st.text())
def test_no_key_is_too_strange_for_the_rules(key):
    assert RULES.rule_of(key) in {None, *MEANINGS}


@pytest.mark.parametrize(
    ("ignore", "taken", "ignored"),
    [
        (("scratch/",), ["Kiwi/.1.jpg", "Kiwi/1.txt", "scratch.jpg"], {"a/Scratch/Kiwi/1.jpg": "scratch/"}),
        (("default", "*_old.*"), ["Kiwi/old.jpg"], {"Kiwi/1_OLD.jpg": "*_old.*", "Kiwi/.1.jpg": "hidden"}),
        (("Kiwi/", "default"), ["Fig/1.jpg"], {"Kiwi/.1.jpg": "Kiwi/"}),
        (("v?.png",), ["Kiwi/v10.png", "Kiwi/v1.jpg"], {"Kiwi/v1.png": "v?.png"}),
        (("a[1].jpg",), ["Kiwi/a1.jpg"], {"Kiwi/a[1].jpg": "a[1].jpg"}),
        (("none",), ["Kiwi/.1.jpg", "__MACOSX/Kiwi/1.jpg", "1.txt"], {"Kiwi/": "folder_marker"}),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, tuple) else None,
)
def test_the_setting_names_folders_and_files(ignore, taken, ignored):
    chosen = rules(*ignore)
    assert {key: chosen.rule_of(key) for key in taken} == dict.fromkeys(taken)
    assert {key: chosen.rule_of(key) for key in ignored} == ignored


def test_a_rule_of_one_s_own_says_which_pattern_it_is():
    assert meaning_of("*.bak") == "Ignored by the pattern '*.bak' of FRUITS_IGNORE."


@pytest.mark.parametrize("prefix", ["a/.photos/", "a/.photos/K"])
def test_the_folders_of_the_prefix_decide_nothing(prefix):
    chosen = rules(prefix=prefix)
    assert chosen.rule_of("a/.photos/Kiwi/1.jpg") is None
    assert chosen.rule_of("a/.photos/Kiwi/.1.jpg") == "hidden"


def test_each_rule_says_what_to_do_or_what_its_objects_are():
    assert all(rule.meaning.endswith(".") and rule.patterns for rule in DEFAULT_RULES)


@given(st.lists(st.text(max_size=3)), st.randoms())
def test_names_are_counted_and_the_first_shown_whatever_their_order(names, random):
    shuffled = list(names)
    random.shuffle(shuffled)
    counted = Names()
    for name in shuffled:
        counted = counted.and_also(name)
    assert counted == Names.of(names) == Names(len(names), tuple(sorted(names)[:3]))


def test_names_say_how_many_more_there_are():
    assert str(Names.of(f"{n}.jpg" for n in range(5))) == "5: 0.jpg, 1.jpg, 2.jpg and 2 more"
    assert str(Names.of(["Icon\r"])) == r"1: Icon\r"
