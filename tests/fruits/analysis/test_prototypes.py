import numpy as np
import pytest

from fruits.analysis.prototypes import Photos, fit_prototypes, representatives, similarity, spherical_means
from fruits.errors import FruitsError

RNG = np.random.default_rng(0)


def unit(rows):
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def around(*centres, n=60, spread=0.1):
    """Directions around centres, ``n`` of each, and the centres' numbers as labels."""
    rows = np.concatenate([np.array(centre) + RNG.normal(scale=spread, size=(n, len(centre))) for centre in centres])
    return unit(rows), np.repeat([str(number) for number in range(len(centres))], n)


FITTED = around((1, 0, 0, 0), (0, 1, 0, 0))
HELD_OUT = around((1, 0, 0, 0), (0, 1, 0, 0), n=150)


def photos(*parts):
    """Photos of parts: directions, labels, and whether they are held out."""
    directions, labels, held_out = zip(*parts, strict=True)
    flags = np.concatenate([np.full(len(of_part), flag) for of_part, flag in zip(labels, held_out, strict=True)])
    return Photos(np.concatenate(directions), np.concatenate(labels), flags)


BOTH = photos((*FITTED, False), (*HELD_OUT, True))


class TestRepresentatives:
    def test_each_of_several_views_of_a_fruit_has_one(self):
        rows, views = around((1, 0, 0), (0, 1, 0), (0, 0, 1), n=20)
        assert {views[row] for row in representatives(rows, 3)} == {"0", "1", "2"}

    def test_the_first_one_is_nearest_to_all(self):
        rows, _ = around((1, 0, 0), n=30, spread=0.4)
        assert representatives(rows, 1) == [int((rows @ rows.T).sum(axis=0).argmax())]

    def test_more_are_never_further_away(self):
        rows, _ = around((1, 0, 0), n=40, spread=0.5)
        chosen = representatives(rows, 10)
        gains = [(rows @ rows[chosen[:count]].T).max(axis=1).sum() for count in range(1, 11)]
        assert gains == sorted(gains)

    def test_there_are_no_more_than_rows_and_no_row_twice(self):
        assert sorted(representatives(unit([[1, 0], [0, 1], [1, 0]]), 9)) == [0, 1, 2]


class TestSphericalMeans:
    def test_they_are_nearer_than_the_representatives_and_of_length_one(self):
        rows, _ = around((1, 0, 0, 0), (0, 1, 0, 0), n=50, spread=0.5)
        means = spherical_means(rows, 5)
        assert means.shape == (5, 4)
        np.testing.assert_allclose(np.linalg.norm(means, axis=1), 1, rtol=1e-6)
        chosen = rows[representatives(rows, 5)]
        assert (rows @ means.T).max(axis=1).sum() > (rows @ chosen.T).max(axis=1).sum()

    def test_one_is_the_direction_of_the_sum(self):
        rows, _ = around((1, 0, 0), n=30, spread=0.4)
        np.testing.assert_allclose(spherical_means(rows, 1)[0], unit([rows.sum(axis=0)])[0], rtol=1e-5)

    def test_few_rows_are_their_own_means(self):
        rows = unit([[1, 0], [0, 1]])
        assert {tuple(row) for row in spherical_means(rows, 4).tolist()} == {(1.0, 0.0), (0.0, 1.0)}

    def test_rows_stay_as_they_are(self):
        rows, _ = around((1, 0, 0), n=30, spread=0.4)
        before = rows.copy()
        spherical_means(rows, 3)
        assert np.array_equal(rows, before)


class TestFitPrototypes:
    def test_a_tenth_of_the_known_is_lost_and_unknown_things_are_unknown(self):
        found = fit_prototypes(["0", "1"], BOTH, 4)
        assert found.directions.shape == (2, 4, 4)
        assert (found.calibrated_on, found.n) == ("held-out photos", 300)
        new = around((1, 0, 0, 0), (0, 1, 0, 0), n=2000)[0]
        assert np.mean(similarity(found.directions, new).max(axis=1) >= found.threshold) == pytest.approx(0.9, abs=0.05)
        other = around((0, 0, 1, 0), n=50)[0]
        assert (similarity(found.directions, other).max(axis=1) < found.threshold).all()

    def test_the_similarity_is_that_of_each_label(self):
        found = fit_prototypes(["0", "1"], BOTH, 3)
        asked = HELD_OUT[0][:5]
        expected = np.stack([(asked @ of_label.T).max(axis=1) for of_label in found.directions], axis=1)
        np.testing.assert_allclose(similarity(found.directions, asked), expected, rtol=1e-6)

    def test_no_photo_is_compared_with_prototypes_that_were_made_of_it(self):
        """Each photo is a direction of its own: those of the others are at right angles to it."""
        alone = np.eye(60, dtype=np.float32), np.repeat(["0", "1"], 30)
        assert fit_prototypes(["0", "1"], photos((*alone, False)), 30).threshold == pytest.approx(0)

    def test_few_photos_of_a_label_are_all_of_its_prototypes(self):
        few = FITTED[0][[0, 60, 61]], np.array(["0", "1", "1"])
        found = fit_prototypes(["0", "1"], photos((*few, False)), 4)
        assert len(np.unique(found.directions[0], axis=0)) == 1
        assert len(np.unique(found.directions[1], axis=0)) == 2

    def test_without_held_out_photos_those_of_the_fit_split_give_the_threshold(self):
        found = fit_prototypes(["0", "1"], photos((*FITTED, False)), 4)
        assert (found.calibrated_on, found.n) == ("cross-fitted photos", 120)
        new = around((1, 0, 0, 0), (0, 1, 0, 0), n=2000)[0]
        assert np.mean(similarity(found.directions, new).max(axis=1) >= found.threshold) == pytest.approx(0.9, abs=0.07)

    def test_photos_of_other_labels_take_no_part(self):
        strange = unit(np.full((300, 4), -1.0)), np.repeat("2", 300)
        found = fit_prototypes(["0", "1"], photos((*FITTED, False), (*HELD_OUT, True), (*strange, True)), 4)
        assert found.threshold == fit_prototypes(["0", "1"], BOTH, 4).threshold

    def test_a_single_photo_tells_no_threshold(self):
        found = fit_prototypes(["0"], photos((FITTED[0][:1], FITTED[1][:1], False)), 4)
        assert (found.threshold, found.calibrated_on, found.n) == (-1, "nothing", 0)

    def test_a_label_without_a_photo_is_named(self):
        with pytest.raises(FruitsError, match="'2'.*verify"):
            fit_prototypes(["0", "2"], BOTH, 4)
