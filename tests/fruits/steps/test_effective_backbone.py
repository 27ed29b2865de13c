"""Which backbone a run works under: the one that was asked for, or else the one that readers use."""

import pytest

from fruits.backbones.stage import _registry_path
from fruits.errors import FruitsError
from fruits.run.request import RunRequest
from fruits.steps.plan import effective_backbone
from fruits.stores import lake_store, write_json
from tests.runs import base, card

OLD, NEW, INTEGER = "lite0-old", "lite0-new", "lite0-int8-new"


@pytest.fixture
def settings(folder_lake):
    """Settings of a lake where three backbones are staged; ``NEW`` is the configured one, ``INTEGER`` it in int8."""
    models = lake_store(folder_lake, "models")
    for model_id in (OLD, NEW, INTEGER):
        write_json(models, f"{model_id}/card.json", card(model_id, width=4).to_document())
    write_json(models, _registry_path(folder_lake), {"model_id": NEW})
    write_json(models, _registry_path(folder_lake.model_copy(update={"precision": "int8"})), {"model_id": INTEGER})
    return folder_lake


def published(*models):
    return [base(number, model_id=model_id).publication for number, model_id in enumerate(models, start=1)]


@pytest.mark.parametrize(
    ("asked", "history", "chosen"),
    [
        pytest.param({}, (), NEW, id="the configured one before any publication"),
        pytest.param({}, (OLD,), NEW, id="a configured one that readers never had"),
        pytest.param({}, (NEW, OLD), OLD, id="readers left the configured one"),
        pytest.param({"backbone": "efficientnet-lite0"}, (NEW, OLD), NEW, id="the run asks for one"),
        pytest.param({"precision": "int8"}, (NEW,), INTEGER, id="the run asks for another precision"),
        pytest.param({}, (NEW, INTEGER), INTEGER, id="readers left the configured precision"),
        pytest.param({"precision": "fp32"}, (NEW, INTEGER), NEW, id="the run asks for the precision that readers left"),
    ],
)
def test_a_run_works_under(settings, asked, history, chosen):
    assert effective_backbone(settings, RunRequest(prefix="", **asked), published(*history)).model_id == chosen


def test_a_configured_precision_that_readers_never_had_is_a_switch(settings):
    integer = settings.model_copy(update={"precision": "int8"})
    assert effective_backbone(integer, RunRequest(prefix=""), published(NEW)).model_id == INTEGER


def test_a_backbone_that_is_not_staged_is_named_with_the_task_that_stages_it(folder_lake):
    with pytest.raises(
        FruitsError, match=r"backbone efficientnet-lite0 .*not staged in .*clear the run from `prepare`"
    ):
        effective_backbone(folder_lake, RunRequest(prefix=""), [])


def test_more_components_than_the_backbone_has_features_are_refused(settings):
    with pytest.raises(FruitsError, match=r"5,000 components are more than the 4 features .*FRUITS_N_COMPONENTS"):
        effective_backbone(settings, RunRequest(prefix="", n_components=5000), [])
