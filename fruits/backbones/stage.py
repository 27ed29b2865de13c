"""Stage the backbone of the settings into the lake, where executors find it: ``python -m fruits.backbones.stage``.

A backbone is two immutable files, ``models/<model_id>/model.tflite`` and ``card.json``; a registry entry,
``models/registry/<backbone>-<hash of its weights' identity>.json``, names the ``model_id`` that was built for these
settings; for an integer backbone ``<backbone>-int8-...``. The entry is written last, so a reader sees complete
backbones only. To build again, delete the entry.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

from fruits.backbones.card import Card, sha256, staged_name
from fruits.backbones.runtime import Backbone
from fruits.backbones.weights import identity, opened
from fruits.errors import ExitCode, FruitsError
from fruits.settings import Settings, public_uri
from fruits.stores import exists, lake_store, read_bytes, read_json, write_bytes, write_json


def described_backbone(settings: Settings) -> str:
    """The backbone of the settings, with its weights and precision."""
    return f"{settings.backbone} ({settings.precision}) with weights {public_uri(settings.weights)}"


def staged_card(settings: Settings) -> Card | None:
    """The card of the settings' backbone; None when the backbone is not in the lake yet. Needs no TensorFlow.

    Raises:
        FruitsError: when the settings name a weights file that does not exist.
    """
    store = lake_store(settings, "models")
    try:
        entry = read_json(store, _registry_path(settings))
        return Card.from_document(read_json(store, f"{entry['model_id']}/card.json"))
    except FileNotFoundError:
        return None


def read_card(settings: Settings, model_id: str) -> Card:
    """The card of the staged backbone ``model_id``.

    Raises:
        FruitsError: when the backbone is not in the lake.
    """
    return Card.from_document(json.loads(_staged_file(settings, model_id, "card.json")))


def stage(settings: Settings) -> Card:
    """The card of the settings' backbone, which is built and written to the lake when it is not there yet.

    Raises:
        FruitsError: when there is no such backbone, or its weights can't be downloaded or do not fit.
    """
    if (card := staged_card(settings)) is not None:
        return card
    from fruits.backbones.build import build

    registry_path = _registry_path(settings)
    with opened(settings) as weights:
        card, flatbuffer = build(settings.backbone, weights, settings.precision)
    store = lake_store(settings, "models")
    card_path = f"{card.model_id}/card.json"
    if exists(store, card_path):  # the same weights from another place
        card = Card.from_document(read_json(store, card_path))
    else:
        write_bytes(store, f"{card.model_id}/model.tflite", flatbuffer)
        write_json(store, card_path, card.to_document())
    write_json(store, registry_path, {"model_id": card.model_id, "backbone": card.backbone, "weights": card.weights})
    return card


def load_backbone(settings: Settings, model_id: str) -> Backbone:
    """The staged backbone ``model_id``, verified against its card and ready to run.

    Raises:
        FruitsError: when the backbone is not in the lake, or its card describes another one.
    """
    card = read_card(settings, model_id)
    flatbuffer = _staged_file(settings, model_id, "model.tflite")
    if card.model_id != model_id:
        raise FruitsError(f"Backbone {model_id}: its card in {settings.lake}/models is that of {card.model_id}.")
    return Backbone(card, flatbuffer)


@lru_cache(maxsize=1)
def load_backbone_once(settings: Settings, model_id: str) -> Backbone:
    """``load_backbone``, kept until another backbone is asked for: an executor's Python worker runs many tasks."""
    return load_backbone(settings, model_id)


def main(argv: Sequence[str] | None = None) -> int:
    """Stage the backbone of the settings and print its card as one line of JSON."""
    argparse.ArgumentParser(
        prog="python -m fruits.backbones.stage",
        description="Build the backbone of FRUITS_BACKBONE, FRUITS_WEIGHTS and FRUITS_PRECISION into the lake unless "
        "it is there, and print its card as one line of JSON.",
    ).parse_args(argv)
    try:
        settings = Settings.load()
        with _quiet():
            card = stage(settings)
    except FruitsError as error:
        print(error, file=sys.stderr)  # noqa: T201 the command's output
        return error.exit_code
    print(json.dumps(card.to_document(), ensure_ascii=False))  # noqa: T201 the command's output
    return ExitCode.OK


def _staged_file(settings: Settings, model_id: str, name: str) -> bytes:
    try:
        return read_bytes(lake_store(settings, "models"), f"{model_id}/{name}")
    except FileNotFoundError:
        raise FruitsError(
            f"Backbone {model_id}: not in {settings.lake}/models; expected model.tflite and card.json there. "
            "Stage it: python -m fruits.backbones.stage"
        ) from None


def _registry_path(settings: Settings) -> str:
    name = staged_name(settings.backbone, settings.precision)
    return f"registry/{name}-{sha256(identity(settings).encode())[:16]}.json"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the output of TensorFlow and Keras off the terminal; print it after all when a defect ends the build.

    C++ code writes as well, so the file descriptors are redirected.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as log:
        saved = os.dup(1), os.dup(2)
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
        failed = True
        try:
            yield
            failed = False
        except FruitsError:
            failed = False
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, original in zip((1, 2), saved, strict=True):
                os.dup2(original, descriptor)
                os.close(original)
            if failed:
                log.seek(0)
                sys.stderr.write(log.read().decode(errors="replace"))


if __name__ == "__main__":
    sys.exit(main())
