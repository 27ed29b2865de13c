"""An auth manager of Airflow's under which two users may see less than others: `running_ui` starts Airflow with it."""

from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager


class OneDagIsSecret(SimpleAuthManager):
    """`stranger` may read every DAG but fruit_features, `nosy` that DAG but not its runs."""

    def is_authorized_dag(self, *, method: Any, user: Any, access_entity: Any = None, details: Any = None) -> bool:
        asked = details.id if details else None
        if asked == "fruit_features" and (user.username == "stranger" or (user.username == "nosy" and access_entity)):
            return False
        return bool(super().is_authorized_dag(method=method, user=user, access_entity=access_entity, details=details))
