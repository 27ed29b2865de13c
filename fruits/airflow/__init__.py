"""What Airflow's DAGs are made of. Needs the airflow environment."""
