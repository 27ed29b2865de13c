"""The building blocks of the DAGs: sensors, operators, alerts, the timetable. Needs the airflow environment."""
