"""What the triggerer does with a trigger, in the process of a test."""

import json
from typing import Any


def made_again(trigger: Any) -> Any:
    """The trigger as the triggerer makes it, from what Airflow's database keeps."""
    from airflow.sdk._shared.module_loading import import_string
    from airflow.sdk.serde import deserialize, serialize

    path, arguments = trigger.serialize()
    return import_string(path)(**deserialize(json.loads(json.dumps(serialize(arguments)))))


async def event_of(trigger: Any) -> dict[str, Any]:
    """The payload of the trigger's first event."""
    return dict((await anext(trigger.run())).payload)
