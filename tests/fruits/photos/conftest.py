import pytest


@pytest.fixture
def put(stack, bucket):
    """Puts small objects of these keys into the bucket."""
    client = stack.client()
    return lambda *keys: [client.put_object(Bucket=bucket, Key=key, Body=key.encode()) for key in keys]
